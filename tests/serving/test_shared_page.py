"""A page with the model in it: what it computes is what we compute, in Node and in Chromium; what it refuses."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.huggingface import published
from tests.serving.chromium import PROGRAM, browser, shown
from tests.small_model import small_tokenizer  # noqa: F401
from tpullm.cli import main
from tpullm.corpus import document_files, tenki
from tpullm.engine.session import Session, load_session
from tpullm.evaluation.blank import fill_blank
from tpullm.evaluation.scoring import logits, text_log_probabilities
from tpullm.formats.huggingface import tensors
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.schema import ModelConfig, RopeScaling, TokenizerConfig
from tpullm.serving.shared_page import LARGEST, check_config, shared_page
from tpullm.system.errors import UserError
from tpullm.tokenizer import trainer
from tpullm.tokenizer.exported import CHAT_TEMPLATE, write
from tpullm.tokenizer.published import PublishedTokenizer

NODE = shutil.which("node") or ""
needs_node = pytest.mark.skipif(not NODE, reason="there is no Node on this machine")
ODD = ["", " ", "\n\n a\t\n", "▁<0x41> <s><|user|>", "x\x85y\ufeffz\x00", "a" * 40 + " " * 130]
ODD += ["花見🐈‍⬛ ｱｲｳ\u3000１２3 don't DON'Tſ"]

# In the page: the ids of each text, and the log-probabilities of every token at every position.
MEASURED = """async ({ stage, texts }) => {
  const found = [];
  for (const text of texts) {
    const ids = [...SHARED.begin, ...TOKENIZER.encode(text)];
    const reading = reader(stage, ids.length);
    await reading.read(ids);
    found.push([ids, ids.map((_, at) => [...reading.next(at)])]);
  }
  return found;
}"""
ENCODED = "async (texts) => texts.map((text) => TOKENIZER.encode(text))"
CONVERSATION = "async (said) => chatIds(said, 1).ids"
WORDS = "async ([prompt, suffix]) => (await told({ model: BASE, prompt, suffix }))"


def computed(page: str, tmp_path: Path, measured: str, texts):
    """What a function of the page returns, in Node."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [NODE, Path(__file__).with_name("shared_page.js"), tmp_path / "page.html"]
    given = json.dumps({"measured": measured, "texts": texts})
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def made(tokenizer, **config) -> SimpleNamespace:
    """A model with random parameters, and its page."""
    sizes = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context_length": 160} | config
    config = ModelConfig(**sizes).resolved(tokenizer.vocabulary_size)
    architecture, mesh = Architecture(config), make_mesh({"fsdp": -1})
    fresh = tensors.flat(architecture.init(jax.random.key(1)))
    with jax.set_mesh(mesh):
        # Larger than at the start of a training, so that some tokens are likely.
        large = {name: leaf * {"embedding": 15, "head": 1.5}.get(name, 2) for name, leaf in fresh.items()}
        params = jax.device_put(tensors.nested(large), architecture.shardings(mesh))
    flat = {name: np.asarray(array) for name, array in tensors.flat(params).items()}
    session = Session(tokenizer, architecture, params, mesh, jax.numpy.dtype("float32"))
    return SimpleNamespace(session=session, page=shared_page("small", config, tokenizer, flat, flat))


def largest_difference(session, found) -> float:
    """Of a probability, at any position of any text."""
    worst = 0.0
    for ids, log_p_TV in found:
        logits_TV = logits(session, np.array([ids]))[0].astype(np.float64)
        p_TV = np.exp(logits_TV - logits_TV.max(axis=1, keepdims=True))
        p_TV /= p_TV.sum(axis=1, keepdims=True)
        worst = max(worst, np.abs(np.exp(log_p_TV) - p_TV).max())
    return worst


@pytest.fixture(scope="module")
def small(small_tokenizer):  # noqa: F811
    return made(small_tokenizer)


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    texts = [("ja", text) for text in tenki.documents(200, 0)]
    texts += [("en", "The cat's tail isn't 12 cm long.\n  It'll grow.")]
    config = TokenizerConfig(vocabulary_size=400, model_type="bpe", words="none", reserved_tokens=2)
    return trainer.train(texts, config, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


TEXTS = ["今日はいい天気ですね。", "The cat sat.\n" * 3, "花見🐈"]


@needs_node
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"qk_norm": "none", "scale_embeddings": False, "tied_embeddings": False, "rope_theta": 500.0, "kv_heads": 4},
        {"norm_unit_offset": True, "head_width": 12, "mlp_width": 50, "norm_epsilon": 1e-3, "kv_heads": 1},
    ],
)
def test_probabilities_are_ours(small_tokenizer, tmp_path, config):  # noqa: F811
    """The difference is that of 16 bits a number, and of float32 in another order."""
    model = made(small_tokenizer, **config)
    found = computed(model.page, tmp_path, MEASURED, {"stage": "chat", "texts": TEXTS})
    assert [ids for ids, _ in found] == [[*small_tokenizer.begin, *small_tokenizer.encode(text)] for text in TEXTS]
    assert largest_difference(model.session, found) < 1e-3
    chances = np.exp(np.concatenate([log_p for _, log_p in found]))
    assert chances.max() > 0.1, "the model is sure of nothing, so any model would pass"


@needs_node
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_texts_have_our_ids(small, byte_pairs, tmp_path, real_lines, kind):
    model = small if kind == "unigram" else made(byte_pairs)
    tokenizer, texts = model.session.tokenizer, real_lines + ODD
    drawn: list[str] = []

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
    def draw(text):
        drawn.append(text)

    draw()
    found = computed(model.page, tmp_path, ENCODED, texts + drawn)
    wrong = [text for text, ids in zip(texts + drawn, found, strict=True) if ids != tokenizer.encode(text)]
    assert wrong == [] and len(found) > 300


@pytest.fixture(scope="module")
def real_lines(tiny_run):
    """The first 300 lines of the run's texts, in both languages."""
    texts = [document_files.read(tiny_run / "documents", source, "train") for source in ("tenki", "python-docs")]
    lines = [[line for document in source for line in document["text"].splitlines()][:150] for source in texts]
    return [line for of_source in lines for line in of_source]


@needs_node
def test_a_conversation_has_the_ids_of_the_template_and_forgets_its_oldest_turns(small, tmp_path):
    said = [{"role": ("user", "assistant")[n % 2], "content": f"本{n}"} for n in range(5)]
    ours = small.session.tokenizer.chat_template
    assert computed(small.page, tmp_path, CONVERSATION, said) == ours(said, add_generation_prompt=True)[0]
    long = [message | {"content": "本" * 40} for message in said]
    found = computed(small.page, tmp_path, CONVERSATION, long)
    assert found == ours(long[2:], add_generation_prompt=True)[0] and len(found) < 160
    assert len(ours(long, add_generation_prompt=True)[0]) > 160


@needs_node
def test_words_fit_by_the_probability_of_the_whole_text(tiny_run, tmp_path, capsys):
    page = shared(tiny_run, tmp_path, capsys)
    session = load_session(tiny_run, tuned=False)
    told = computed(page, tmp_path, WORDS, ["今日は", "天気です。"])
    words, p = zip(*told["words"], strict=True)
    log_p = np.array(text_log_probabilities(session, [f"今日は{word}天気です。" for word in words]))
    assert np.allclose(p, np.exp(log_p - np.logaddexp.reduce(log_p)), atol=1e-3) and sum(p) == pytest.approx(1)
    ours = dict(fill_blank(session, "今日は【?】天気です。"))
    likely = [word for word, chance in ours.items() if chance > 0.5 * max(ours.values())]
    assert likely and set(likely) <= set(words)
    ids = [*session.tokenizer.begin, *session.tokenizer.encode("今日は")]
    told_p, wanted = told["logprobs"]["token_logprobs"], logits(session, np.array([ids]))[0]
    log_p = wanted - np.logaddexp.reduce(wanted, axis=1, keepdims=True)
    assert np.allclose(told_p[:-1], log_p[np.arange(len(ids) - 1), ids[1:]], atol=1e-2)
    assert told["logprobs"]["text_offset"] == [0, *np.cumsum([len(session.tokenizer.decode([id])) for id in ids[1:]])]


def shared(run: Path, tmp_path: Path, capsys) -> str:
    """The page that `tpullm share` writes of a run."""
    code, out = main.main(["share", str(run), str(tmp_path / "shared.html")]), capsys.readouterr()
    assert code == 0, out.err
    return (tmp_path / "shared.html").read_text("utf-8")


@needs_node
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_an_exported_tokenizer_is_read_like_ours(small_tokenizer, byte_pairs, tmp_path, kind):  # noqa: F811
    tokenizer = small_tokenizer if kind == "unigram" else byte_pairs
    write(tmp_path, tokenizer, context_length=160, tuned=True)
    texts = [*ODD[:3], "本を読みます。", "The cat's 12", "▁x"]
    found = computed(made(PublishedTokenizer(tmp_path)).page, tmp_path, ENCODED, texts)
    assert found == list(map(tokenizer.encode, texts))


def test_a_tokenizer_that_the_page_does_not_know_is_refused(tmp_path):
    tokenizer = PublishedTokenizer(published.directory(tmp_path / "model", layers=1))
    with pytest.raises(UserError, match="can't split text as its tokenizer does"):
        made(tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("message['content'] +", "message['content'].strip() +"),
        CHAT_TEMPLATE.replace("for message in messages", "for message in messages[-1:]"),
        CHAT_TEMPLATE.replace("{{- bos_token -}}", "{{- bos_token + (messages | length) | string -}}"),
    ],
)
def test_a_template_that_is_not_turn_by_turn_is_refused(small_tokenizer, tmp_path, template):  # noqa: F811
    write(tmp_path, small_tokenizer, context_length=160, tuned=True)
    with pytest.raises(UserError, match="can't be shown turn by turn"):
        made(PublishedTokenizer(tmp_path, template=template))


@pytest.mark.parametrize(
    ("change", "parameters", "message"),
    [
        ({"experts": 4}, 1, "its experts is 4, which the page does not compute"),
        ({"norm": "layer"}, 1, "its norm is layer"),
        ({"qk_norm": "all"}, 1, "its qk_norm is all"),
        ({"windows": (0, 64)}, 1, "its windows is"),
        ({"rope_scaling": RopeScaling("linear", 2.0)}, 1, "its rope_scaling is"),
        ({}, LARGEST + 1, "has 20,000,001 parameters, and a page holds 20,000,000 at most"),
    ],
)
def test_what_the_page_does_not_compute_is_refused_in_one_line(change, parameters, message):
    check_config(dataclasses.replace(ModelConfig(), windows=(0, 0), dropout=0.1), LARGEST, "m")
    with pytest.raises(UserError, match=f"^m: {message}") as refused:
        check_config(dataclasses.replace(ModelConfig(), **change), parameters, "m")
    assert "\n" not in str(refused.value)


def test_the_page_holds_all_and_its_policy_allows_nothing_else(small):
    policy = re.search('http-equiv="content-security-policy" content="([^"]*)"', small.page)[1].replace("&#39;", "'")
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == parts["form-action"] == parts["base-uri"] == "'none'" and "connect-src" not in parts
    assert parts["script-src"].startswith("'sha256-") and " " not in parts["script-src"]
    assert re.findall(r'(?:src|href)="([^"]*)"', small.page) == ["data:,"]
    assert re.findall(r"https?:|wss?:|[\"'(]//|@import|url\(|\bfetch\(|XMLHttp|import\(", small.page) == []


def test_a_chat_is_kept_by_what_is_in_the_file(small_tokenizer):  # noqa: F811
    one, same, other = (made(small_tokenizer, layers=layers).page for layers in (1, 1, 2))
    names = [re.search(r'id="identity">(\w{64})<', page)[1] for page in (one, same, other)]
    assert names[0] == names[1] != names[2]


@pytest.mark.ci
@pytest.mark.skipif(not PROGRAM, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium(tiny_run, tmp_path, capsys, monkeypatch, width):
    """Both stages, in both languages; what the page asks for is itself alone."""
    monkeypatch.setattr("tpullm.serving.answered_questions.answered_questions", lambda model: ["本をどうしますか。"])
    shared(tiny_run, tmp_path, capsys)
    with browser(tmp_path / "browser") as page:
        page.open((tmp_path / "shared.html").as_uri(), width=width, language="ja-JP")
        page.wait("models.length")
        for stage, tuned in (("text", False), ("chat", True)):
            found = page.value(f"({MEASURED})({json.dumps({'stage': stage, 'texts': TEXTS})})")
            assert largest_difference(load_session(tiny_run, tuned=tuned), found) < 1e-3
        page.value("document.querySelector('#questions button').click()")
        page.wait("!answering && messages.length === 2")
        assert len(shown(page, ".answer.plain")) == 1
        page.value("say('本'.repeat(9999))")
        page.wait("!answering && !by('error').hidden")
        assert page.value("[messages.length, by('message').value.length]") == [2, 9999]  # it goes back to its field
        page.value("by('next-tab').click(); setText('今日は【?】天気です。')")
        page.wait("shown && !reading")
        assert shown(page, "#place") == ["【？】に入る言葉"] and len(shown(page, "#candidates button")) > 1
        word = shown(page, "#candidates button")[0]
        page.value("document.querySelector('#candidates button').click()")
        page.wait("shown && !reading")
        assert page.value("by('text').value") == f"今日は{word}天気です。" and math.isclose(page.value("scrollX"), 0)
        page.value("by('text').value = '本'.repeat(9999); read()")
        page.wait("!by('error').hidden")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.faults == [] and {url for url in page.requests if not url.startswith("data:")} == {
            (tmp_path / "shared.html").as_uri()
        }
