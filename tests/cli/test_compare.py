"""`tpullm compare`: what it writes, that it resumes, on two hosts; its errors, before any model is loaded."""

import json
import shutil

import pytest

from tests.formats.huggingface.published import change, change_tensor, directory
from tpullm.cli import main
from tpullm.cli.compare import _words_by_label
from tpullm.engine import session
from tpullm.evaluation.statistics import ALIKE
from tpullm.system import log, storage

CHOICES = ["晴れ", "雨", "<script>alert(1)</script>"]
ROWS = [{"question": f"今日は{n}時？<script>", "choices": CHOICES, "answer": n % 3} for n in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three published models, two of which are the same and have one name, questions, and texts."""
    folder = tmp_path_factory.mktemp("compare")
    for model in ("here/small", "other"):
        directory(folder / model, layers=1)
        change(folder / model / "config.json", max_position_embeddings=512)
    change_tensor(folder / "other", "model.embed_tokens.weight", lambda array: array[::-1].copy())
    shutil.copytree(folder / "here" / "small", folder / "there" / "small")
    (folder / "weather.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "texts").mkdir()
    for number in range(8):
        (folder / "texts" / f"{number}.txt").write_text(f"猫が好きです。{number}", "utf-8")
    (folder / "one.txt").write_text("The cat sat on the mat.\n")
    return folder


@pytest.fixture
def words(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return ["here/small", "there/small", "other", "--tasks", "weather.jsonl", "--text", "texts,one.txt", "--limit", "8"]


def compared(capsys, *words):
    code = main.main(["compare", *map(str, words), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


@pytest.mark.ci
def test_equal_models_differ_by_exactly_0_and_another_one_does_not(words, capsys, folder):
    results = compared(capsys, *words, "--out", "out")
    assert results == storage.read_json(folder / "out" / "results.json")
    assert [model["label"] for model in results["models"]] == ["here/small", "there/small", "other"]
    one, same, other = results["models"]
    assert one["hash"] == same["hash"] != other["hash"] and one["requests"]["kept"] == 0
    assert same["requests"]["kept"] == same["requests"]["requests"] == one["requests"]["requests"] > 0
    assert same["requests"]["cut"] == 0
    texts = results["texts"]
    figures = [figure for task in results["tasks"].values() for figure in task["figures"].values()]
    for figure in (*figures, texts["all"], *(part["figure"] for part in (*texts["by_text"], *texts["by_place"]))):
        equal, differs = figure["deltas"]
        assert equal == {"value": 0.0, "interval": [0.0, 0.0], "differ": 0, "word": ALIKE}
        assert differs["value"] == pytest.approx(figure["scores"][2]["value"] - figure["scores"][0]["value"])
    assert results["texts"]["all"]["deltas"][1]["value"] != 0
    assert results["command"].startswith("tpullm compare here/small there/small other --tasks weather.jsonl --text")
    assert results["tasks"]["weather"]["version"] and results["settings"]["limit"] == 8

    total = sum(text["bytes"] for text in texts["by_text"])
    for parts in (texts["by_text"], texts["by_place"]):
        for model in range(3):
            bits = sum(part["figure"]["scores"][model]["value"] * part["bytes"] for part in parts)
            assert bits == pytest.approx(texts["all"]["scores"][model]["value"] * total)
    page = (folder / "out" / "compare.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "src=" not in page
    # The same command asks nothing again.
    assert main.main(["compare", *words, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    for part in ("weather, 8 questions", "minus here/small", "likeliest per byte", "can't tell", "bits a byte, 9 doc"):
        assert part in printed
    again = storage.read_json(folder / "out" / "results.json")
    assert all(model["requests"]["kept"] == model["requests"]["requests"] for model in again["models"])
    assert again["tasks"] == results["tasks"] and again["texts"] == results["texts"]


@pytest.mark.ci
def test_without_tasks_it_is_the_held_out_text_of_the_run(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = compared(capsys, tiny_run / "pretrain", tiny_run / "talk", "--limit", 2)
    texts = {text["name"]: text["documents"] for text in found["texts"]["by_text"]}
    assert texts == {"tenki": 2, "python-docs": 2}
    assert found["tasks"] == {}
    (made,) = (tmp_path / "compared").iterdir()
    assert made.name.startswith("pretrain-talk-")
    assert {path.name for path in made.iterdir()} == {"answers.jsonl", "results.json", "compare.html"}


@pytest.mark.ci
def test_one_model_is_compared_with_itself_in_fewer_bits(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    given = ["other", "--text", "one.txt", "--weights", "int8,int4,int8", "--out", "bits"]
    found = compared(capsys, *given)
    assert [model["label"] for model in found["models"]] == ["other", "other int8", "other int4"]
    assert len({model["hash"] for model in found["models"]}) == 3
    in_8, in_4 = (abs(delta["value"]) for delta in found["texts"]["all"]["deltas"])
    assert 0 < in_8 < in_4
    assert "--weights int8,int4,int8" in found["command"]
    assert main.main(["compare", *given]) == 0
    percent = found["texts"]["all"]["deltas"][1]["value"] / found["texts"]["all"]["scores"][0]["value"]
    assert f", {percent:+.2%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "MODEL: 0 given, and a comparison needs two or more"),
        (["other", "--text", "one.txt"], "MODEL: 1 given, and a comparison needs two or more"),
        (["other", "here/../other", "--text", "one.txt"], "MODEL: other is given twice"),
        (["other", "gone", "--text", "one.txt"], "gone: no such file or folder"),
        (["other", "here/small"], "other: has no held-out text of its run, as a comparison without --tasks and --text"),
        (["other", "here/small", "--tasks", "gone.jsonl"], "gone.jsonl: no such file of questions"),
        (["other", "here/small", "--tasks", ","], "--tasks: names no task"),
        (["other", "here/small", "--text", ","], "--text: names no text"),
        (["other", "here/small", "--tasks", "weather.jsonl", "--shots", "9"], "--shots: 9, and weather has 9"),
        (["other", "here/small", "--text", "one.txt", "--limit", "-1"], "--limit: -1 is below 0"),
        (["other", "--text", "one.txt", "--weights", "int8,int3"], "--weights: 'int3' is not one of int8, int4"),
        (["other", "bare", "--tasks", "weather.jsonl", "--chat"], "--chat: bare has no chat template"),
        (["other", "here/small", "--text", "one.txt", "--out", "texts"], "texts: holds 0.txt, which is of no"),
        (["other", "here/small", "--text", "one.txt", "--out", "one.txt"], "one.txt: is a file; name a folder"),
        (["other", "here/small", "--text", "one.txt", "--out", "measured"], "holds the results of `tpullm evaluate`"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(folder, monkeypatch, capsys, given, said):
    monkeypatch.chdir(folder)
    shutil.copytree("other", "bare", dirs_exist_ok=True)
    change(folder / "bare" / "tokenizer_config.json", chat_template=None)
    storage.write_json(folder / "measured" / "results.json", {"model": {}})
    monkeypatch.setattr(session, "session_of", None)
    before = sorted(folder.rglob("*"))
    assert main.main(["compare", *given]) == 2
    log.speak_as("")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and sorted(folder.rglob("*")) == before


def test_labels_are_as_short_as_they_can_be():
    assert list(_words_by_label(["a/q/pretrain", "a/q/talk"])) == ["pretrain", "talk"]
    assert list(_words_by_label(["a/q", "b/q/", "c/r"])) == ["a/q", "b/q", "r"]
    assert list(_words_by_label(["a/q/talk/checkpoints/5", "a/q/talk/checkpoints/10"])) == ["talk/5", "talk/10"]
