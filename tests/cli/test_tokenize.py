import dataclasses
import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from tests.corpus import made_documents
from tpullm.cli import data as data_command
from tpullm.cli import tokenize
from tpullm.corpus import document_files as documents_store
from tpullm.data import tokenizing
from tpullm.data.stream import pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.recipe.schema import CorpusConfig, Recipe, Source, TokenizerConfig, TrainConfig
from tpullm.run import manifest
from tpullm.system.errors import UserError
from tpullm.tokenizer import load

SOURCES = [Source(language, "text", licence="CC0-1.0", language=language) for language in ("ja", "en")]
SENTENCES = {
    "ja": [
        "今日はいい天気ですね。",
        "私はリンゴを食べるのが好きです。",
        "明日は学校で本を読みます。",
        "寒いから、何も飲みません。",
    ],
    "en": ["The weather is nice today.", "I like to eat apples.", "We read a book at school.", "  Nothing to drink."],
}
RECIPE = Recipe(
    corpus=CorpusConfig(sources=SOURCES),
    tokenizer=TokenizerConfig(vocabulary_size=345, words="none", workers=1),
    pretrain=TrainConfig(steps=10, batch_size=4, sequence_length=32),
)
SMALL_SAMPLE = dataclasses.replace(RECIPE, tokenizer=dataclasses.replace(RECIPE.tokenizer, sample_characters=3_000))


def texts_of(source, split):
    rng = np.random.default_rng(len(split))
    chosen = rng.integers(0, 4, (60 if split == "train" else 5, 4))
    return ["\n".join(SENTENCES[source][sentence] for sentence in document) + f"{split}" for document in chosen]


def write_documents(run, sources=SOURCES):
    """Documents as `collect` leaves them, ten in a part."""
    texts = [(source, split, texts_of(source.name, split)) for source in sources for split in ("train", "held_out")]
    made_documents.write(run / "documents", texts, per_part=10)
    manifest.write(run / "documents", {"sources": [source.name for source in sources]})


@pytest.fixture
def run(tmp_path):
    write_documents(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("made") / "run"
    write_documents(run)
    tokenize.main(RECIPE, run)
    return run


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copied")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    run = tmp_path_factory.mktemp("sampled") / "run"
    write_documents(run)
    tokenize.main(SMALL_SAMPLE, run)
    return run


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_document_is_in_the_store_between_its_marks(made):
    model = load(made / "tokenizer")
    facts = json.loads((made / "tokens" / manifest.FILE).read_text())["sources"]
    assert model.vocabulary_size == 345 and set(facts) == {"ja", "en"}
    for source in ("ja", "en"):
        for split in ("train", "held_out"):
            store, texts = TokenStore(made / "tokens" / source / split), texts_of(source, split)
            numbers, ids = store.identities(np.arange(len(texts)))
            for document, number in enumerate(numbers.tolist()):
                tokens, text = store.document(document).tolist(), texts[number]
                assert tokens == [model.bos_id, *model.encode(text), model.eos_id]
            size = sum(len(text.encode()) for text in texts)
            counts = {"documents": len(texts), "tokens": store.lengths.total + len(texts), "bytes": size}
            assert facts[source][split] == counts
            hashes = [document["hash"] for document in documents_store.read(made / "documents", source, split)]
            assert [f"{id:016x}" for id in ids.tolist()] == [hashes[number][:16] for number in numbers.tolist()]
            assert sorted(numbers.tolist()) == list(range(len(texts))) and store.lengths.documents == len(texts)


def test_the_store_does_not_depend_on_the_number_of_workers(run, made, monkeypatch):
    monkeypatch.setattr(tokenizing, "PARALLEL_BYTES", 0)
    workers = dataclasses.replace(RECIPE.tokenizer, workers=2)
    tokenize.main(dataclasses.replace(RECIPE, tokenizer=workers), run)
    assert len(list((run / "documents").rglob("*.parquet"))) > 5  # there is something to share
    for stage in ("tokenizer", "tokens"):
        assert contents(run / stage) == contents(made / stage)


def test_byte_pairs_are_the_same_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "PARALLEL_BYTES", 0)
    found = []
    for workers in (1, 2):
        write_documents(run := tmp_path / f"{workers}")
        pairs = dataclasses.replace(RECIPE.tokenizer, model_type="bpe", words="soft", workers=workers)
        tokenize.main(dataclasses.replace(RECIPE, tokenizer=pairs), run)
        found.append([contents(run / stage) for stage in ("tokenizer", "tokens")])
    assert found[0] == found[1]
    model, store = load(run / "tokenizer"), TokenStore(run / "tokens" / "ja" / "held_out")
    found, text = store.document(store.find(np.array([0]))[0]), texts_of("ja", "held_out")[0]
    assert found.tolist() == [model.bos_id, *model.encode(text), model.eos_id]


@pytest.mark.parametrize("failing", ["draw_task", "make_part", "assemble"])
def test_an_interrupted_stage_goes_on_and_keeps_what_was_done(run, made, sampled, monkeypatch, failing):
    recipe, whole = (SMALL_SAMPLE, sampled) if failing == "draw_task" else (RECIPE, made)
    name = "make_part" if failing == "assemble" else failing
    done, real = [], getattr(tokenizing, name)

    def counted(task):
        if failing == name and len(done) == 3 and not (run / "again").exists():
            raise KeyboardInterrupt
        done.append(repr(task))
        real(task)

    monkeypatch.setattr(tokenizing, name, counted)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        if failing == "assemble":
            interrupted.setattr(tokenizing, "assemble", Mock(side_effect=KeyboardInterrupt))
        tokenize.main(recipe, run)
    assert (run / "tokenizer").exists() == (failing != "draw_task") and not (run / "tokens" / manifest.FILE).exists()
    (run / "again").touch()
    tokenize.main(recipe, run)
    assert len(done) == len(set(done)) == len(list((run / "documents").rglob("*.parquet")))
    for stage in ("tokenizer", "tokens"):
        assert contents(run / stage) == contents(whole / stage)


def test_a_sample_is_no_larger_than_asked_for(sampled):
    told = json.loads((sampled / "tokenizer" / manifest.FILE).read_text())
    assert 2_500 < told["sample_characters"] <= 3_000


def test_other_documents_replace_the_tokens_and_the_same_ones_do_not(copied, monkeypatch):
    with monkeypatch.context() as skipped:
        skipped.setattr(tokenizing, "make", None)  # would fail if it were called
        skipped.setattr(tokenize.trainer, "train", None)
        tokenize.main(dataclasses.replace(RECIPE, tokenizer=dataclasses.replace(RECIPE.tokenizer, workers=7)), copied)
    write_documents(copied, SOURCES[:1])
    fewer = dataclasses.replace(RECIPE, corpus=CorpusConfig(sources=SOURCES[:1]))
    smaller = dataclasses.replace(RECIPE.tokenizer, vocabulary_size=327)
    tokenize.main(dataclasses.replace(fewer, tokenizer=smaller), copied)
    assert load(copied / "tokenizer").vocabulary_size == 327
    assert sorted(path.name for path in (copied / "tokens").iterdir()) == ["ja", manifest.FILE]


def test_a_broken_file_of_documents_is_one_line(run):
    broken = sorted((run / "documents").rglob("*.parquet"))[0]
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"^{broken}: is broken \(.*\); remove its .*$"):
        tokenize.main(RECIPE, run)
    assert not (run / "tokens" / manifest.FILE).exists()


def test_show_prints_pieces_and_ids(made, capsys):
    asked = SimpleNamespace(show="今日は\n👍", model=str(made), json=True)
    tokenize.show_main(asked)
    (line,) = capsys.readouterr().out.splitlines()
    shown = json.loads(line)
    assert [entry["id"] for entry in shown] == load(made / "tokenizer").encode(asked.show)
    assert [entry["piece"] for entry in shown][-5:] == ["\n", "<0xF0>", "<0x9F>", "<0x91>", "<0x8D>"]


def test_the_tokenizer_is_found_from_every_kind_of_model(made, tmp_path):
    for model in (made, made / "pretrain", made / "pretrain" / "checkpoints" / "100", made / "tokenizer"):
        assert tokenize.find_tokenizer(model).vocabulary_size == 345
    with pytest.raises(UserError, match="no such tokenizer"):
        tokenize.find_tokenizer(tmp_path / "elsewhere")


def test_data_prints_what_is_in_a_step(made, capsys):
    for step in (-1, 10):
        with pytest.raises(UserError, match=f"--step {step}: pretraining has the steps 0 to 9"):
            data_command.main(RECIPE, made, SimpleNamespace(step=step, json=False))
    capsys.readouterr()
    data_command.main(RECIPE, made, SimpleNamespace(step=2, json=True))
    found = json.loads(capsys.readouterr().out)
    pieces = pretraining_stream(RECIPE, made).documents_at(2)
    assert [(of["source"], of["id"], of["row"]) for of in found] == [(of.source, of.id, of.row) for of in pieces]
    texts = texts_of("ja", "train") + texts_of("en", "train")
    assert all(entry["text"] and any(entry["text"].replace("⏎", "\n") in text for text in texts) for entry in found)
    data_command.main(RECIPE, made, SimpleNamespace(step=2, json=False))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(pieces) + 1
    documents = {name: list(documents_store.read(made / "documents", name, "train")) for name in ("ja", "en")}
    for piece, entry, line in zip(pieces, found, lines[2::2], strict=True):
        document = documents[piece.source][piece.document]
        assert document["id"] == piece.id == entry["id"] and entry["record"] == document["record"]
        assert line.strip().split("  ") == [f"file {document['record']}", document["licence"]]
