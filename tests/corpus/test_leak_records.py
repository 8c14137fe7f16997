"""The questions of tasks that a corpus holds: named, counted, and dropped if so set; the same for any shares."""

import json

import pytest

from tests.corpus.test_collect import _collect as collect
from tests.corpus.test_collect import _texts
from tpullm.corpus import datacard, document_files
from tpullm.corpus.tenki import documents as tenki_documents
from tpullm.recipe.schema import CorpusConfig, LeaksConfig, Recipe, Source
from tpullm.system.errors import UserError

TALES = [text for text in tenki_documents(400, 5) if len(text) > 60]
QUESTIONS = [
    "主に子ども向けのもので、イラストのついた物語が書かれているものはどれ？",
    "電子機器で使用される最も主要な電子回路基板の事をなんと言う？",
    "田んぼが広がる風景は？",  # 10 characters, and 2 of its choices: too short
    "What did the old keeper of the lighthouse say to the two sailors who came at night?",
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def asked(tmp_path):
    rows = [{"question": text, "choices": ["甲", "乙"], "answer": 0} for text in QUESTIONS]
    return write(tmp_path / "quiz.jsonl", rows)


@pytest.fixture
def texts():
    """Documents: one with two questions in another form, a copy of it, and one with a question that is held out."""
    found = [f"{number}番目の話。\n{text}" for number, text in enumerate(TALES[:150])]
    found[7] = f"{found[7]}\n{QUESTIONS[0].replace('の', 'の ')}\n{QUESTIONS[3].upper()}"
    found[90] = found[7]
    return found


def recipe(path, *tasks, drop=False, **settings):
    source = Source("tales", "jsonl", str(path), licence="CC0-1.0", rules=[], **settings)
    leaks = LeaksConfig([str(task) for task in tasks], drop)
    return Recipe(corpus=CorpusConfig(sources=[source], workers=1, held_out_fraction=0.05, leaks=leaks))


def records(folder):
    return [json.loads(line) for line in (folder / "documents" / datacard.FILE).read_text("utf-8").splitlines()]


def kept(folder):
    return [text for split in ("train", "held_out") for text in _texts(folder, split, "tales")]


def test_documents_that_hold_questions_are_named(tmp_path, asked, texts, capsys):
    card = collect(recipe(write(tmp_path / "in.jsonl", [{"text": text} for text in texts]), asked), tmp_path)
    told = {"questions": 4, "too_short": 1, "found": 2, "trained_on": 1, "dropped": 0}
    assert {key: card["leaks"]["tasks"]["quiz"][key] for key in told} == told
    found = records(tmp_path)
    expected = [(question, "line 8", "train") for question in (0, 3)]
    expected += [(question, "line 91", "exact duplicate") for question in (0, 3)]
    assert [(one["question"], one["record"], one["use"]) for one in found] == expected
    assert found[0]["asked"] == QUESTIONS[0] and found[0]["task"] == "quiz" and found[0]["source"] == "tales"
    assert found[1]["passage"] == "whatdidtheoldkeeperofthelighthousesaytothetwosailors" and found[1]["share"] == 1
    (text,) = [one for one in document_files.read(tmp_path / "documents", "tales", "train") if one["text"] == texts[7]]
    assert found[0]["hash"] == text["hash"]
    assert datacard.found_in_training(tmp_path / "documents", "quiz") == {0, 3}
    assert "quiz: 2 of 4 questions are in 1 documents to train on; 0 documents were dropped" in capsys.readouterr().err
    markdown = (tmp_path / "documents" / "datacard.md").read_text("utf-8")
    assert "## Questions of tasks" in markdown and "| quiz | 4 | 2 | 1 | 0 | 1 |" in markdown


def test_they_are_dropped_if_so_set_with_their_reason(tmp_path, asked, texts):
    path = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    card = collect(recipe(path, asked, drop=True), tmp_path)
    told = {"found": 0, "trained_on": 0, "dropped": 1}
    assert {key: card["leaks"]["tasks"]["quiz"][key] for key in told} == told
    assert card["dropped"]["tales"] == {"questions of a task": 2} and card["documents"] == 148
    assert sorted(kept(tmp_path)) == sorted(set(texts) - {texts[7]})
    assert {one["use"] for one in records(tmp_path)} == {"questions of a task"}
    assert card["dropped_examples"]["tales"]["questions of a task"][0]["record"] == "line 8"


def test_without_tasks_nothing_is_written_and_no_document_differs(tmp_path, asked, texts):
    path = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    assert "leaks" in collect(recipe(path, asked), tmp_path / "with")
    with_them = kept(tmp_path / "with")
    assert "leaks" not in collect(recipe(path), tmp_path / "with"), "made again, without"
    assert not (tmp_path / "with" / "documents" / datacard.FILE).exists()
    assert kept(tmp_path / "with") == with_them


def test_what_is_held_out_is_not_trained_on_but_a_source_of_few_documents_on_any_of_them(tmp_path, asked, texts):
    few = write(tmp_path / "few.jsonl", [{"text": text} for text in texts[:20]])
    collect(recipe(few, asked), tmp_path / "few")
    assert [one["use"] for one in records(tmp_path / "few")] == ["train"] * 2
    apart = write(tmp_path / "apart.jsonl", [{"text": texts.pop(90)}])
    texts.pop(7)
    path = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    card = collect(recipe(path, asked, drop=True, held_out=str(apart)), tmp_path)
    assert [one["use"] for one in records(tmp_path)] == ["held_out"] * 2, "what is held out by name is kept"
    assert card["leaks"]["tasks"]["quiz"]["found"] == 0


def test_other_questions_make_the_documents_again_and_other_code_does_not(tmp_path, asked, texts, capsys):
    path = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    made = recipe(path, asked)
    collect(made, tmp_path)
    collect(made, tmp_path)
    assert "documents: finished, skipped" in capsys.readouterr().err
    write(asked, [{"question": texts[3][:60], "answer": "-"}])
    card = collect(made, tmp_path)
    assert card["leaks"]["tasks"]["quiz"]["questions"] == 1
    assert [one["record"] for one in records(tmp_path)] == ["line 4"]
    with pytest.raises(UserError, match="^corpus.leaks.tasks: .*: no such file of questions; correct the name$"):
        collect(recipe(path, tmp_path / "none.jsonl"), tmp_path)
