"""share: the file that is written, what is said of it, and what is refused."""

import base64
import json
import re

import pytest

from tests.formats.huggingface import published
from tpullm.cli import main


@pytest.fixture
def share(capsys):
    """Run the verb: (exit code, stderr)."""

    def run(*words):
        code = main.main(["share", *map(str, words)])
        return code, capsys.readouterr().err

    return run


def weights(page: str) -> dict[str, bytes]:
    return {stage: base64.b64decode(text) for stage, text in re.findall(r'id="weights-(\w+)">([^<]*)<', page)}


def test_a_tuned_run_gives_both_its_stages_and_a_stage_gives_one(share, tiny_run, tmp_path):
    code, said = share(tiny_run, tmp_path / "new" / "both.html")
    assert code == 0 and "share: pretrain and talk, " in said and "parameters each; see" in said
    page = (tmp_path / "new" / "both.html").read_text("utf-8")
    held = weights(page)
    described = json.loads(re.search(r'id="shared">([^<]*)<', page)[1])
    numbers = sum(shape[0] * (shape[1] if len(shape) > 1 else 2) for shape in described["arrays"].values())
    floats = sum(shape[0] for shape in described["arrays"].values())
    norms = sum(shape[0] for shape in described["arrays"].values() if len(shape) == 1)
    assert {stage: len(data) for stage, data in held.items()} == dict.fromkeys(
        ("text", "chat"), 4 * floats + 2 * (numbers - 2 * norms)
    )
    assert held["text"] != held["chat"] and described["chat"] and described["name"] == "tiny"
    for stage, key in (("talk", "chat"), ("pretrain", "text")):
        code, said = share(tiny_run / stage, tmp_path / "one.html")
        one = (tmp_path / "one.html").read_text("utf-8")
        assert code == 0 and f"share: {stage}, " in said and weights(one) == {"text": held[key]}
        assert bool(json.loads(re.search(r'id="shared">([^<]*)<', one)[1])["chat"]) == (stage == "talk")


def test_the_chat_begins_with_questions_that_the_model_answers(share, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("tpullm.serving.answered_questions.answered_questions", lambda model: [f"{model.stage}?"])
    assert share(tiny_run, tmp_path / "asked.html")[0] == 0
    described = re.search(r'id="shared">([^<]*)<', (tmp_path / "asked.html").read_text("utf-8"))[1]
    assert json.loads(described)["questions"] == ["talk?"]


def test_the_file_of_a_run_is_in_its_folder_and_none_is_half_written(share, tiny_run):
    code, _ = share(tiny_run)
    assert code == 0 and (tiny_run / "share.html").read_text("utf-8").endswith("</html>")
    assert list(tiny_run.glob(".share*")) == []
    (tiny_run / "share.html").unlink()


def test_what_can_not_be_shared_is_refused_in_one_line(share, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("tpullm.serving.shared_page.LARGEST", 1000)
    refused = [
        ((tiny_run, tmp_path / "a.html"), "parameters, and a page holds 1,000 at most"),
        ((tiny_run, tmp_path), "is a folder; give the name of an HTML file"),
        ((tmp_path / "none",), "no such file or folder"),
        ((published.directory(tmp_path / "model", layers=1),), "name the HTML file to write after it"),
    ]
    for words, why in refused:
        code, said = share(*words)
        assert code == 2 and why in said and len(said.strip().splitlines()) == 1, said
    assert list(tmp_path.glob("*.html")) == []


def test_the_page_has_the_tuned_model_alone_if_both_are_too_large(share, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("tpullm.serving.shared_page.LARGEST", 80_000)
    code, said = share(tiny_run, tmp_path / "a.html")
    assert code == 0 and "the page has the tuned one alone" in said and "share: talk, " in said
    assert set(weights((tmp_path / "a.html").read_text("utf-8"))) == {"text"}
