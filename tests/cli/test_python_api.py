"""The Python API: what a notebook calls."""

import re
import signal
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

import tpullm
from tests.conftest import ROOT, TINY, interruptible
from tests.formats.huggingface.published import directory
from tpullm.cli import python_api
from tpullm.cli.python_results import Attention, Blank
from tpullm.engine import session as tpullm_session
from tpullm.launch import child_process
from tpullm.system.errors import Interrupted, TryAgain, UserError

STYLE = resources.files("tpullm.report").joinpath("templates/style.css").read_text("utf-8")
PYTHON = sys.executable
BLANK = "今日はとても【?】天気ですね。"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tpullm.load(directory(tmp_path_factory.mktemp("published") / "model", layers=1))


def test_logits_of_a_published_model(model):
    ids = np.array([model.tokenizer.encode("猫が好き")] * 3)
    logits = model.logits(ids)
    assert logits.shape == (3, ids.shape[1], model.config.vocabulary_size) and logits.dtype == np.float32
    np.testing.assert_array_equal(logits[0], logits[2])


def test_wrong_ids_are_refused(model):
    wrong = {"give integers": [1, 2], "give": [[0.5]], "run from -1": [[-1]], "use 0 to": [[9999]]}
    for message, ids in {**wrong, "longer|context holds": [[0] * 500]}.items():
        with pytest.raises(UserError, match=message):
            model.logits(np.array(ids))
    with pytest.raises(UserError, match="empty"):
        model.generate("")


def test_a_run_of_ours_is_a_model_too(tiny_run):
    model = tpullm.load(tiny_run / "pretrain")
    ids = np.array([[*model.tokenizer.begin, *model.tokenizer.encode("今日は")]])
    assert model.logits(ids).shape == (1, ids.shape[1], model.config.vocabulary_size)
    found = tpullm.Run(folder=tiny_run).model("pretrain").blank("今日は【?】天気です。", {})
    assert sum(probability for _, probability in found.words) == pytest.approx(1)
    assert len(model.attention("今日は").tokens) == model.attention("今日は").weights.shape[-1]


@pytest.mark.ci
def test_a_tuned_run_is_evaluated_and_answers(tiny_run):
    run = tpullm.Run(folder=tiny_run)
    assert run.evaluate()["tenki"]["tokens"] > 0
    model = run.model()
    assert isinstance(model.answer("今日は何を食べますか。", tokens=4), str)
    ids = np.array([[*model.tokenizer.begin, *model.tokenizer.encode("猫が好き")]])
    likeliest = int(model.logits(ids)[0, -1].argmax())
    assert model.generate("猫が好き", tokens=5).startswith(model.tokenizer.decode([likeliest]))


def test_a_published_folder_without_a_tokenizer_gives_logits_and_only_text_is_refused(tmp_path, model):
    folder = directory(tmp_path / "published", layers=1)
    (folder / "tokenizer.json").unlink()
    bare, ids = tpullm.load(folder), np.array([[5, 7, 1]])
    np.testing.assert_array_equal(bare.logits(ids), model.logits(ids))
    encode = lambda text: bare.tokenizer.encode(text)  # noqa: E731
    for ask in (bare.generate, bare.answer, bare.blank, bare.attention, bare.split, encode):
        with pytest.raises(UserError, match="has no tokenizer.json, and text needs it"):
            ask(BLANK)
    with pytest.raises(UserError, match="tokenizer.json: no such file"):  # a verb reads and writes text
        tpullm_session.load_session(folder)


def test_nothing_is_imported_before_it_is_used():
    code = "import sys, tpullm; assert 'Run' in dir(tpullm); print('jax' in sys.modules, hasattr(tpullm, 'nothing'))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split() == ["False", "False"]


@pytest.mark.ci
def test_the_steps_are_the_verbs_of_the_command_line(tiny_tokens, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's kernel has it: the lines are plain all the same
    run = tpullm.Run(TINY, tiny_tokens)
    run.collect()
    run.tokenize()
    skipped = [f"{stage}: finished, skipped" for stage in ("documents", "tokenizer", "tokens")]
    assert capsys.readouterr().out.splitlines() == skipped
    page = run.report()
    assert page == tiny_tokens / "report.html" and page.is_file()
    with pytest.raises(UserError, match="pretrain: not made yet; run `tpullm pretrain"):
        run.finetune()
    assert "tpullm:" not in capsys.readouterr().out, "the last words are those of the exception"


def test_a_run_without_a_recipe_is_that_of_its_folder(tiny_run):
    run = tpullm.Run(folder=tiny_run)
    assert run.folder == tiny_run
    assert len(run.documents("tenki", 2)) == 2 and run.documents("tenki", 1)[0] in run.documents("tenki", 9)
    split = run.split("今日はいい天気ですね。")
    assert repr(split).replace("/", "") == "今日はいい天気ですね。" and len(split.ids) == len(split.tokens) > 2
    losses = dict(run.loss().losses)
    assert list(losses) == [5, 10, 15, 20, 25, 30] and losses[30] < losses[5]


def test_keys_are_those_of_the_recipe(tmp_path):
    run = tpullm.Run("quickstart", tmp_path / "run", {"pretrain.steps": 20, "evaluate.prompts": ["雨の日は"]})
    assert run.folder == tmp_path / "run" and not run.folder.exists()
    assert run._words[-1] == '--evaluate.prompts=["雨の日は"]'
    with pytest.raises(UserError, match="nearest is pretrain.steps"):
        tpullm.Run("quickstart", tmp_path / "run", {"pretrain.stepz": 20})


def test_what_is_not_there_yet_is_said(tiny_tokens, tmp_path):
    run = tpullm.Run(TINY, tiny_tokens)
    with pytest.raises(UserError, match="call pretrain"):
        run.loss()
    with pytest.raises(UserError, match="no documents of a source 'novels'"):
        run.documents("novels")
    with pytest.raises(UserError, match="no such tokenizer"):
        tpullm.Run(TINY, tmp_path / "a" / "b" / "c" / "d").split("text")


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (75, TryAgain), (130, Interrupted), (1, RuntimeError)])
def test_how_a_verb_ends(monkeypatch, tiny_run, code, kind, capsys):
    run = tpullm.Run(folder=tiny_run)
    words = f"print('one'); print('tpullm: a line', flush=True); raise SystemExit({code})"
    monkeypatch.setattr(python_api, "Child", lambda command, *rest: child_process.Child([PYTHON, "-c", words], *rest))
    with pytest.raises(kind, match="exit code 1" if code == 1 else "a line"):
        run.collect()
    assert capsys.readouterr().out == "one\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.ci
def test_a_notebooks_stop_button_lets_training_save(tiny_tokens):
    code = f"import tpullm; tpullm.Run({str(TINY)!r}, {str(tiny_tokens)!r}, {{'pretrain.steps': 100000}}).pretrain()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with interruptible():
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    out, error = process.communicate(timeout=120)
    assert "stopped and saved at step" in error and "Interrupted" in error, out + error
    saved = [int(path.name) for path in (tiny_tokens / "pretrain" / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"step {max(saved):,};" in error


def test_every_picture_brings_the_style_that_it_needs(tiny_run):
    run = tpullm.Run(folder=tiny_run)
    words = (("いい", 0.5), ("寒い", 0.25))
    for shown in (run.split("今日は"), run.loss(), Blank(BLANK, words), Blank(BLANK, words, {"いい": 1.0})):
        html = shown._repr_html_()
        used = {name for names in re.findall(r'class="([^"]*)"', html) for name in names.split()}
        style = html[html.index("<style>") : html.index("</style>")]
        ruled = set(re.findall(r"(?m)(?:^|\} )\.([\w-]+)", STYLE))
        assert {name for name in used & ruled if not re.search(rf"\.{name}[ .{{,]", style)} == set()
        assert used & {"piece", "plot", "bar"} and "http" not in html
        names = set(re.findall(r"var\((--\w+)", style)) - {"--label"}
        assert names - set(re.findall(r"(--\w+):", html)) == set(), "every colour has a value"


def test_a_blank_beside_the_truth():
    found = Blank(BLANK, (("いい", 0.5), ("寒い", 0.3), ("赤い", 0.2)), {"いい": 0.6, "寒い": 0.4})
    assert found.total_variation == pytest.approx(0.2) and repr(found) == "いい 50.0%, 寒い 30.0%, 赤い 20.0%"
    html = found._repr_html_()
    assert "the truth" in html and html.index("いい") < html.index("寒い") < html.index("赤い")
    alone = Blank(BLANK, found.words)
    assert alone.total_variation is None and "the truth" not in alone._repr_html_()
    many = Blank(BLANK, tuple((f"語{i}", 0.1) for i in range(10)), {"語9": 1.0})._repr_html_()
    assert many.count("<dt>") == 7 and "other words" in many and "語9" in many
    shown = Attention(("今日", "は"), np.full((1, 2, 2, 2), 0.5, np.float32))
    assert "<svg" in shown._repr_html_() and repr(shown) == "attention of 今日/は"


def test_the_truth_is_the_grammars():
    found = tpullm.truth(BLANK)
    assert next(iter(found)) == "いい" and sum(found.values()) == pytest.approx(1)
    with pytest.raises(UserError):
        tpullm.truth("The 【?】 is nice.")
