"""The index of other people's tokens: its documents, their ids and their split are those of any other way to read."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_token_files import array, datatrove, llm_c, megatron
from tpullm.corpus import tenki
from tpullm.data import token_files, token_index
from tpullm.data.stream import Stream
from tpullm.data.token_store import TokenStore
from tpullm.recipe.schema import Source, TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import load, trainer

END, V = 2, 300


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer of tenki's language; a document has `<s>` and `</s>`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(vocabulary_size=640, words="none", reserved_tokens=2)
    trainer.train([("ja", text) for text in tenki.documents(600, 0)], config, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def texts(tokenizer):
    return [load(tokenizer).document(text) for text in tenki.documents(200, 1)]


def source(path, **keys):
    return Source("web", "tokens", str(path), licence="x", **keys)


def made(path, folder, tokenizer, fraction=0.1, **keys):
    parts = token_index.plan(source(path, **keys), folder / "parts", tokenizer)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for part in parts:
        token_index.make_part(part)
    facts = token_index.assemble(folder / "web", parts, fraction)
    return {name: TokenStore(folder / "web" / name) for name in facts}, facts


def documents_of(store):
    """In the order of their files."""
    numbers = store.find(np.arange(store.lengths.documents))
    return [store.document(numbers[number]).tolist() for number in sorted(numbers)]


def ids_of(store):
    numbers, ids = store.identities(np.arange(store.lengths.documents))
    return ids[np.argsort(numbers)].tolist()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, V - 1), max_size=6), max_size=8), st.integers(1, 7), st.data())
def test_a_document_is_known_by_its_tokens_whatever_the_windows(tmp_path_factory, documents, window, data):
    folder = tmp_path_factory.mktemp("files")
    (file,) = token_files.find(str(datatrove(folder, documents)))
    first = data.draw(st.integers(0, len(documents)))
    own, before = documents[first:], sum(map(len, documents[:first]))
    bounds = before + np.cumsum([len(tokens) for tokens in own]).astype(np.int64)
    fake = SimpleNamespace(vocabulary_size=V, eos_id=END, begin=[1], bytes_per_token=lambda: np.arange(V))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_index, "WINDOW", window)
        ids, ended, begun, size = token_index._scan(file, before, bounds, fake)
    digests = [hashlib.sha256(np.array(tokens, "<u4").tobytes()).digest() for tokens in own]
    assert ids.tolist() == [int.from_bytes(digest[:8], "big") for digest in digests] and ids.dtype == np.uint64
    assert ended == sum(tokens[-1:] == [END] for tokens in own)
    assert begun == sum(tokens[:1] == [1] for tokens in own)
    assert size == sum(map(sum, own))


WRITERS = {
    "datatrove": lambda folder, texts: datatrove(folder, texts),
    "datatrove, 4 bytes": lambda folder, texts: datatrove(folder, texts, 4),
    "Megatron": lambda folder, texts: megatron(folder, texts, "<i4", cuts=range(0, 200, 3)),
    "llm.c": lambda folder, texts: llm_c(folder, texts),
    "numpy": lambda folder, texts: array(folder, texts, "<i8"),
}


@pytest.mark.parametrize("cut", [1 << 30, 2_000])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_same_documents_are_the_same_in_every_format(tmp_path, texts, tokenizer, write, cut, monkeypatch):
    """Their tokens, their ids, and whether they are held out; for any size of the parts."""
    monkeypatch.setattr(token_index, "PART_BYTES", cut)
    stores, facts = made(write(tmp_path, texts), tmp_path, tokenizer)
    ids = [int.from_bytes(hashlib.sha256(np.array(tokens, "<u4").tobytes()).digest()[:8], "big") for tokens in texts]
    for name, store in stores.items():
        chosen = [number for number, id in enumerate(ids) if (id < 0.1 * 2**64) == (name == "held_out")]
        assert documents_of(store) == [texts[number] for number in chosen]
        assert ids_of(store) == [ids[number] for number in chosen]
        counts = {"documents": len(chosen), "tokens": sum(len(texts[number]) for number in chosen)}
        assert {key: facts[name][key] for key in counts} == counts
    utf8 = load(tokenizer).bytes_per_token()
    assert sum(each["bytes"] for each in facts.values()) == pytest.approx(sum(utf8[sum(texts, [])]), abs=1)


def test_parts_of_a_large_file_are_ranges_of_its_documents(tmp_path, texts, tokenizer, monkeypatch):
    monkeypatch.setattr(token_index, "PART_BYTES", 1_000)
    path = datatrove(tmp_path, texts)
    parts = token_index.plan(source(path), tmp_path, tokenizer)
    assert len(parts) == -(-path.stat().st_size // 1_000) and sum(part.bytes for part in parts) <= path.stat().st_size
    assert [part.first for part in parts[1:]] == [part.last for part in parts[:-1]] and parts[-1].last == len(texts)
    monkeypatch.setattr(token_index, "PART_DOCUMENTS", 3)
    assert max(part.last - part.first for part in token_index.plan(source(path), tmp_path, tokenizer)) == 3
    whole = token_index.plan(source(array(tmp_path, texts)), tmp_path, tokenizer)
    assert [(part.first, part.last, part.bytes) for part in whole] == [(0, -1, whole[0].file.bytes)]
    assert [part.tokens.name for part in parts[:2]] == ["000000.npz", "000001.npz"]


def test_what_a_recipe_holds_out_is_held_out_whole(tmp_path, texts, tokenizer):
    (tmp_path / "files").mkdir()
    array(tmp_path / "files", texts[:150], name="train.npy")
    apart = array(tmp_path / "files", texts[150:], name="test.npy")
    stores, _ = made(tmp_path / "files", tmp_path, tokenizer, held_out=str(apart))
    assert documents_of(stores["train"]) == texts[:150] and documents_of(stores["held_out"]) == texts[150:]


def test_tokens_that_are_not_learned_have_weight_0(tmp_path, texts, tokenizer):
    losses = [[number > 2 for number in range(len(tokens))] for tokens in texts]
    stores, _ = made(datatrove(tmp_path, texts, losses=losses), tmp_path, tokenizer)
    batch = Stream({"web": stores["train"]}, {"web": 1.0}, 4, 96, seed=0).batch_at(0)
    real = batch.segment_ids > 0
    begins = batch.positions[real] < 2  # the targets are tokens 1 and 2 of a document, and no document is cut here
    assert max(map(len, texts)) <= 97 and (batch.weights[real] == ~begins).all()


def test_an_id_beyond_the_vocabulary_is_named_with_its_place(tmp_path, texts, tokenizer):
    size = load(tokenizer).vocabulary_size
    path = array(tmp_path, [*texts[:3], [1, size, 2]])
    place = sum(map(len, texts[:3])) + 1
    with pytest.raises(UserError, match=rf"part.npy: token {place} is {size}, and the tokenizer"):
        made(path, tmp_path, tokenizer)
    path = array(tmp_path, [*texts[:3], [1, -5, 2]], "<i4")
    with pytest.raises(UserError, match=f"is -5, and the tokenizer of the recipe has {size}; set `base`"):
        made(path, tmp_path, tokenizer)


def test_tokens_of_another_tokenizer_are_refused_or_told(tmp_path, texts, tokenizer, capsys):
    """Ids that are bytes that are no text, and those of this one in another order, as another one of its size."""
    with pytest.raises(UserError, match=r"web: its tokens are not those of the recipe's tokenizer: .* set `base`"):
        made(array(tmp_path, [[100 + token % 100 for token in tokens] for tokens in texts]), tmp_path, tokenizer)
    capsys.readouterr()
    made(array(tmp_path, texts), tmp_path, tokenizer)
    model = load(tokenizer)
    (said,) = capsys.readouterr().err.splitlines()
    prefix = "tokens: web: a document begins '"
    begins = said.removeprefix(prefix).removesuffix("…'")
    assert said == f"{prefix}{begins}…'" and any(model.decode(tokens).startswith(begins) for tokens in texts)
    order = np.random.default_rng(0).permutation(np.arange(3, model.vocabulary_size)).tolist()
    mapped = [[token if token < 3 else order[token - 3] for token in tokens] for tokens in texts]
    made(array(tmp_path, mapped), tmp_path / "other", tokenizer)
    assert "% only: is `base` their model?" in capsys.readouterr().err


def test_what_the_files_say_of_begins_and_ends_is_told(tmp_path, texts, tokenizer, capsys):
    (tmp_path / "files").mkdir()
    datatrove(tmp_path / "files", [tokens[1:] for tokens in texts[:60]] + texts[60:], name="one.ds")
    made(tmp_path / "files", tmp_path, tokenizer)
    assert capsys.readouterr().err.splitlines()[:-1] == [
        "tokens: web: written with the tokenizer some/tokenizer, by what its files say",
        "tokens: web: 60 of 200 documents do not begin with <s>, as those of the model do",
    ]
    (tmp_path / "files" / "one.ds.metadata").unlink()
    datatrove(tmp_path / "files", [*(tokens[:-1] for tokens in texts), [1], []], name="one.ds")
    (tmp_path / "files" / "one.ds.metadata").unlink()
    made(tmp_path / "files", tmp_path, tokenizer)
    said = "tokens: web: 201 of 201 documents do not end with </s>, as those of the model do"
    assert capsys.readouterr().err.splitlines()[:-1] == [said]


def test_of_few_documents_the_lowest_hash_is_held_out_and_one_is_left_to_train_on(tmp_path, texts, tokenizer):
    stores, facts = made(array(tmp_path, texts[:5]), tmp_path, tokenizer, fraction=1e-9)
    assert facts["held_out"]["documents"] == 1 and facts["train"]["documents"] == 4
    assert ids_of(stores["held_out"])[0] < min(ids_of(stores["train"]))
    _, facts = made(array(tmp_path, texts[:5]), tmp_path / "none", tokenizer, fraction=0)
    assert set(facts) == {"train"}
    with pytest.raises(UserError, match="web: no document left to train on"):
        made(array(tmp_path, texts[:5]), tmp_path, tokenizer, fraction=1)
