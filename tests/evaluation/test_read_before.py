"""What a model has read before is told beside its score, and the score of the rest is that of the rest asked alone."""

import dataclasses
import zlib

import pytest

from tests.evaluation import problems
from tests.evaluation.conftest import Guesses
from tests.evaluation.problems import write
from tpullm.corpus import datacard
from tpullm.corpus.question_windows import Wording
from tpullm.evaluation import problem_files, read_before, tables, tasks
from tpullm.evaluation.question_files import read_questions
from tpullm.evaluation.question_task import measure_questions
from tpullm.evaluation.tasks import Asking, Tasks

THINGS = ["本", "パン", "水", "リンゴ", "新聞", "お茶", "手紙", "肉", "牛乳", "雑誌"]
VERBS = ["読みます", "食べます", "飲みます"]
LEAKED = (1, 4, 5)


def run_with(folder, name, version, numbers):
    """A run in whose training text `collect` has found the questions of these numbers, and one that was dropped."""
    found = [{"task": name, "question": number, "use": "train"} for number in numbers]
    write(folder / "documents" / datacard.FILE, [*found, {"task": name, "question": 0, "use": "held_out"}])
    write(folder / "documents" / "datacard.json", [{"leaks": {"tasks": {name: {"version": version}}}}])
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    asked = {"choices": VERBS}
    rows = [asked | {"question": f"{thing}をどうしますか。", "answer": n % 3} for n, thing in enumerate(THINGS)]
    return read_questions(write(tmp_path_factory.mktemp("questions") / "verbs.jsonl", rows))


@pytest.fixture
def run(file, tmp_path):
    return run_with(tmp_path, "verbs", file.version, LEAKED)


@pytest.fixture
def guesses(wide):
    return Guesses(wide, lambda of: VERBS[zlib.crc32(repr(of).encode()) % 3])


def told(run, file, rows):
    return read_before.read_figures(run, Tasks([file]), {file.name: {"questions": rows}})[file.name]


def test_the_questions_in_the_training_text_are_told_and_the_others_scored_alone(run, file, guesses):
    found = told(run, file, measure_questions(guesses, file, Asking())["questions"])
    rest = tuple(item for number, item in enumerate(file.items) if number not in LEAKED)
    alone = measure_questions(guesses, dataclasses.replace(file, items=rest), Asking())
    assert (found["looked_for"], found["asked"], found["found"]) == (True, 10, 3)
    written = {key: alone["written"][key] for key in ("right", "count", "share", "interval")}
    assert found["unread"] == {"written": written, **alone["likelihood"]}
    shown = [row[:2] for row in tables.task_rows({"read_before": found})]
    assert shown[0] == ("in its training text", "30.0%") and len(shown) == 1 + 5
    rows = measure_questions(guesses, file, Asking(limit=2))["questions"]  # of others, nothing is said
    assert (told(run, file, rows)["found"], told(run, file, rows[1:2])["unread"]) == (1, {})


def test_where_nothing_was_looked_for_nothing_is_known(run, file):
    others = dataclasses.replace(file, version="other questions")
    for folder, asked in ((None, file), (run / "documents", file), (run, others)):
        assert told(folder, asked, []) == {"looked_for": False}
    unknown = ("in its training text", "unknown", "", "")
    assert list(tables.task_rows({"read_before": {"looked_for": False}})) == [unknown]


def test_a_question_is_known_by_what_its_row_holds(tmp_path):
    asked = [{"question": "何？", "answers": [{"text": "犬"}]}]
    jnli = {"sentence1": "犬が走る。", "sentence2": "動物が動く。", "label": "entailment"}
    jsquad = {"paragraphs": [{"context": "犬 [SEP] 犬は走る。", "qas": asked}]}
    rows = [
        ({"question": "何？", "answer": ["水", "お茶"]}, Wording(("何？",), ("水", "お茶"))),
        (jnli, Wording(("犬が走る。", "動物が動く。"), ("entailment",), ("entailment", "contradiction", "neutral"))),
        ({"instruction": "次を訳せ。", "input": "a dog", "output": "犬"}, Wording(("a dog",), ("犬",))),
        ({"instruction": "犬を英語で言え。", "output": "dog"}, Wording(("犬を英語で言え。",), ("dog",))),
        (jsquad, Wording(("犬\n犬は走る。", "何？"), ("犬",))),
    ]
    (made,) = tasks.leak_questions([write(tmp_path / "own.jsonl", [row for row, _ in rows])])
    assert made.questions == [wording for _, wording in rows]


def test_problems_of_programming_are_known_by_their_prompts(tmp_path):
    word = problems.write(tmp_path / "adding.jsonl", problems.ROWS)
    file, (asked,) = problem_files.read_problems(word), tasks.leak_questions([word])
    row = problems.ROWS[0]
    assert asked.version == file.version
    assert asked.questions[0] == Wording((row["prompt"],), (row["canonical_solution"],))
    verdicts = {"own/1": ["passed", "failed"], "own/2": ["passed", "passed"], "own/3": ["error", "time"]}
    answers = [{"problem": name, "verdict": word} for name, words in verdicts.items() for word in words]

    def told(run):
        return read_before.read_figures(run, Tasks(problems=[file]), {"adding": {"questions": answers}})["adding"]

    found = told(run_with(tmp_path, "adding", file.version, [1]))
    assert (found["looked_for"], found["asked"], found["found"]) == (True, 3, 1)
    assert found["unread"]["pass@1"]["share"] == 0.25 and found["unread"]["pass@1"]["count"] == 2
    assert ("  pass@1, others", "25.0%") in [row[:2] for row in tables.task_rows({"read_before": found})]
    assert told(None) == {"looked_for": False}


@pytest.mark.ci
def test_questions_of_the_harness_are_known_by_their_texts_and_the_rest_is_scored_alone(tmp_path):
    """Of an answer in the middle by each beginning, of a whole text by itself."""
    pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    from tests.evaluation import local_tasks

    files = local_tasks.write(tmp_path)
    words = [files[name] for name in ("choice", "context", "whole_texts")]
    chosen, asked = tasks.tasks_named(words), {task.name: task for task in tasks.leak_questions(words)}
    text, choices, right = local_tasks.QUESTIONS[0]
    assert asked["local_choice"].questions[0] == Wording((text,), (choices[right],), tuple(choices))
    assert asked["local_context"].questions[0].texts == tuple(f"{text}{choice}" for choice in choices)
    assert asked["local_whole_texts"].questions[2] == Wording(("犬も",), ())
    run = run_with(tmp_path / "run", "local_choice", asked["local_choice"].version, [1, 4])
    scores = {"scores": {"acc": dict(enumerate([1.0, 1.0, 0.0, 0.0, 1.0, 1.0]))}}
    found = read_before.read_figures(run, chosen, {"local_choice": scores, "local_context": scores})
    assert found["local_context"] == {"looked_for": False}
    acc = found["local_choice"]["unread"]["acc"]
    assert (found["local_choice"]["asked"], found["local_choice"]["found"]) == (6, 2)
    assert (acc["value"], acc["count"]) == (2 / 4, 4)
