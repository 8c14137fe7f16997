"""Before training begins a user reads what was read of a folder, what was not and why, and what goes to tuning."""

import dataclasses
import json

import pytest

from tests.corpus.desktop_files import docx, package, paragraph
from tests.corpus.test_chats import LINE_JA
from tests.corpus.test_json_files import CHATGPT, HI
from tpullm.cli import collect
from tpullm.data import examples
from tpullm.recipe.schema import CorpusConfig, Recipe, TuningConfig
from tpullm.run import stages
from tpullm.system.errors import UserError

TALK = {"first": TuningConfig(preferences=["p.jsonl"]), "talk": TuningConfig(conversations=["tenki"])}


@pytest.fixture
def folder(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("A text.\n" * 9)
    docx(texts / "b.docx", paragraph("Word."))
    (texts / "conversations.json").write_text(json.dumps([CHATGPT, CHATGPT]))  # a copy counts once
    (texts / "talk.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Q"}, HI[1]]}) + "\n")
    (texts / "line.txt").write_text(LINE_JA)
    (texts / "reviews.csv").write_text("n,review\n1,This is a film that I liked a lot.\n2,This is one that I left.\n")
    (texts / "settings.json").write_text('{"a": 1}')
    for name in ("a.png", "b.png", "c.png", "old.doc"):
        (texts / name).write_bytes(b"x")
    package(texts / "z.zip", {"in/x.txt": "In a zip.\n"})
    return texts


def told(capsys, recipe, run):
    collect.main(recipe, run)
    return [
        line.partition("documents: yours: ")[2] for line in capsys.readouterr().err.split("\n") if "yours: " in line
    ]


def test_three_lines_say_what_was_read_what_was_not_and_what_goes_to_tuning(tmp_path, folder, capsys):
    recipe = Recipe(text=str(folder), corpus=CorpusConfig(workers=1), finetune=TALK)
    run = tmp_path / "run"
    assert told(capsys, recipe, run) == [
        "read: 7 files (2 text, 1 docx, 1 json, 1 line, 1 csv, 1 jsonl), 9 documents",
        "not read: a.png, b.png and 1 more (a picture has no text; tesseract IMAGE TEXT reads one); "
        "settings.json (holds no text and no conversation that is known here; save its text as .txt, or as .jsonl with "
        "the key text); old.doc (save it as .docx: soffice --headless --convert-to docx FILE)",
        "2 conversations with an assistant: finetune.talk learns from them too; "
        "line.txt is a chat of 太郎, 花子: read as text; to tune on it, say who answers: --text_assistant NAME; "
        "of reviews.csv its column 'review' is read (--text_key NAME reads another one)",
    ]
    path = stages.found_conversations(recipe, run, "talk")
    assert stages.found_conversations(recipe, run, "first") is None
    learned, _ = examples.read([str(path)], examples.Conversation, {}, 0.0, 0)
    assert [talk.messages[0]["content"] for talk in learned] == ["Hi?", "Q"]
    # With an assistant, two days of the chat are conversations too; it is another corpus.
    more = dataclasses.replace(recipe, text_assistant="太郎")
    lines = told(capsys, more, run)
    assert lines[-1].startswith("4 conversations with an assistant: ") and "text_assistant" not in lines[-1]
    (folder / "conversations.json").unlink()
    (folder / "talk.jsonl").unlink()
    told(capsys, recipe, run)
    assert stages.found_conversations(recipe, run, "talk") is None


def test_a_broken_zip_file_is_named_with_what_to_do(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text.\n" * 9)
    (tmp_path / "texts" / "z.zip").write_bytes(b"PK\3\4 and no more")
    read, not_read = told(
        capsys, Recipe(text=str(tmp_path / "texts"), corpus=CorpusConfig(workers=1)), tmp_path / "run"
    )
    assert read == "read: 1 files (1 text), 1 documents"
    assert not_read.startswith("not read: z.zip (is no zip file or is cut off (") and "download it again" in not_read


def test_a_single_file_that_can_t_be_read_says_what_to_do(tmp_path):
    (tmp_path / "b.docx").write_bytes(b"broken")
    recipe = Recipe(text=str(tmp_path / "b.docx"), corpus=CorpusConfig(workers=1))
    with pytest.raises(UserError, match=r"1 not read\); b.docx: is broken \(File is not a zip file\); save it again"):
        collect.main(recipe, tmp_path / "run")
