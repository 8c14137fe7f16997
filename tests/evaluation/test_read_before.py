"""What a model has read before is told beside its score, and the score of the rest is that of the rest asked alone."""

import dataclasses
import json
import zlib

import pytest

from tests.evaluation import problems
from tpullm.cli import collect
from tpullm.evaluation import problem_files, read_before, tables, task_words
from tpullm.evaluation.likelihoods import Likelihood
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.question_files import items, read
from tpullm.evaluation.question_task import Asking, measure
from tpullm.recipe.schema import CorpusConfig, LeaksConfig, Recipe, Source

THINGS = ["本", "パン", "水", "リンゴ", "新聞", "お茶", "手紙", "肉", "牛乳", "雑誌"]
VERBS = ["読みます", "食べます", "飲みます"]
LEAKED = (1, 4, 5)
SAID = [
    "as the first teacher of arithmetic in our small town would have liked to see it done",
    "which is what every clerk at the counter of a bank does many times in a day",
    "and round it down before, since half of an apple was never sold at this market",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose text holds three of ten questions, and the file of the questions."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {"question": f"昨日の朝に駅の前で友だちからもらった{thing}をどうしますか。", "choices": VERBS, "answer": n % 3}
        for n, thing in enumerate(THINGS)
    ]
    write(folder / "verbs.jsonl", rows)
    texts = [
        f"{number}番の町には{chr(0x4E00 + 31 * number) * 20}という山があり、人々は毎年登ります。"
        for number in range(200)
    ]
    for place, number in zip((20, 90, 150), LEAKED, strict=True):
        texts[place] += rows[number]["question"]
    write(folder / "in.jsonl", [{"text": text} for text in texts])
    source = Source("mountains", "jsonl", str(folder / "in.jsonl"), licence="CC0-1.0", filter=False, deduplicate=False)
    leaks = LeaksConfig([str(folder / "verbs.jsonl")])
    collect.main(Recipe(corpus=CorpusConfig(sources=[source], workers=1, held_out_fraction=0.0, leaks=leaks)), folder)
    return folder


class Guesses(MeasuredModel):
    """Its answer to a request depends on the request alone, as a model's does; nothing is compiled."""

    def likelihoods(self, requests):
        return [Likelihood(-float(zlib.crc32(repr(request).encode()) % 997), False) for request in requests]

    def written(self, requests):
        return [VERBS[zlib.crc32(repr(request).encode()) % 3] for request in requests]


@pytest.fixture
def guesses(wide):
    return Guesses(wide, parameters="none")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_the_questions_in_the_training_text_are_told_and_the_others_scored_alone(run, guesses):
    file = read(str(run / "verbs.jsonl"))
    found = measure(guesses, file, Asking())
    told = read_before.figures(run, file, found["questions"])
    rest = tuple(item for number, item in enumerate(file.items) if number not in LEAKED)
    alone = measure(guesses, dataclasses.replace(file, items=rest), Asking())
    assert (told["looked_for"], told["asked"], told["found"]) == (True, 10, 3)
    written = {key: alone["written"][key] for key in ("right", "count", "share", "interval")}
    assert told["unread"] == {"written": written, **alone["likelihood"]}
    shown = [row[:2] for row in tables.rows({"read_before": told})]
    assert shown[0] == ("in its training text", "30.0%") and len(shown) == 1 + 5


def test_of_questions_that_are_not_asked_nothing_is_said(run, guesses):
    file = read(str(run / "verbs.jsonl"))
    rows = measure(guesses, file, Asking(limit=2))["questions"]
    assert read_before.figures(run, file, rows)["found"] == 1
    assert read_before.figures(run, file, rows[1:2])["unread"] == {}


def test_where_nothing_was_looked_for_nothing_is_known(run, tmp_path):
    file = read(str(run / "verbs.jsonl"))
    others = dataclasses.replace(file, version="other questions")
    for folder, asked in ((None, file), (tmp_path, file), (run, others)):
        assert read_before.figures(folder, asked, []) == {"looked_for": False}
    assert list(tables.rows({"read_before": {"looked_for": False}})) == [("in its training text", "unknown", "", "")]


def test_a_question_is_known_by_what_its_row_holds():
    rows = [
        {"question": "何？", "answer": ["水", "お茶"]},
        {"sentence1": "犬が走る。", "sentence2": "動物が動く。", "label": "entailment"},
        {"instruction": "次を訳せ。", "input": "a dog", "output": "犬"},
        {"instruction": "犬を英語で言え。", "output": "dog"},
        {
            "paragraphs": [
                {"context": "犬 [SEP] 犬は走る。", "qas": [{"question": "何が走る？", "answers": [{"text": "犬"}]}]}
            ]
        },
    ]
    made = [task_words._wording(item) for row in rows for item in items(row, "here")]
    assert [one.texts for one in made] == [
        ("何？",),
        ("犬が走る。", "動物が動く。"),
        ("a dog",),
        ("犬を英語で言え。",),
        ("犬\n犬は走る。", "何が走る？"),
    ]
    assert [one.answers for one in made] == [("水", "お茶"), ("entailment",), ("犬",), ("dog",), ("犬",)]


def test_problems_of_programming_are_looked_for_too(tmp_path):
    rows = [
        row | {"prompt": row["prompt"].replace("to x.", f"to x, {SAID[n]}.")} for n, row in enumerate(problems.ROWS)
    ]
    file = problem_files.read(problems.write(tmp_path / "adding.jsonl", rows))
    write(tmp_path / "in.jsonl", [{"text": f"Here is a program that somebody wrote.\n\n{rows[1]['prompt']}"}])
    source = Source("code", "jsonl", str(tmp_path / "in.jsonl"), licence="CC0-1.0", filter=False, deduplicate=False)
    leaks = LeaksConfig([str(tmp_path / "adding.jsonl")])
    collect.main(Recipe(corpus=CorpusConfig([source], workers=1, held_out_fraction=0.0, leaks=leaks)), tmp_path)
    verdicts = {"own/1": ["passed", "failed"], "own/2": ["passed", "passed"], "own/3": ["error", "time"]}
    answers = [{"problem": name, "verdict": word} for name, words in verdicts.items() for word in words]
    told = read_before.of_problems(tmp_path, file, answers)
    assert (told["looked_for"], told["asked"], told["found"]) == (True, 3, 1)
    assert told["unread"]["pass@1"]["share"] == 0.25 and told["unread"]["pass@1"]["count"] == 2
    assert ("  pass@1, others", "25.0%") in [row[:2] for row in tables.rows({"read_before": told})]
    assert read_before.of_problems(None, file, answers) == {"looked_for": False}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Tasks of the harness from local files, whose questions are longer than those of `local_tasks`."""
    pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    from tests.evaluation import local_tasks

    folder = tmp_path_factory.mktemp("tasks")
    made = {name: local_tasks.write(folder)[name] for name in ("choice", "context", "whole_texts")}
    long = [f"昨日の朝に駅の前で友だちからもらった{thing}を鞄に入れて、それから" for thing in THINGS]
    rows = [
        {"question": asked, "choices": VERBS, "label": n % 3, "contexts": [f"{asked}{verb}" for verb in VERBS]}
        for n, asked in enumerate(long)
    ]
    write(folder / "questions.jsonl", rows)
    return made, long


def test_questions_of_the_harness_are_known_by_their_texts(tasks):
    """Of an answer in the middle by each beginning, of a whole text by itself."""
    files, long = tasks
    read = {task.name: task.questions for task in task_words.read(list(files.values()))}
    assert [one.texts for one in read["local_choice"]] == [(asked,) for asked in long]
    assert read["local_choice"][1].answers == (VERBS[1],)
    assert read["local_context"][0].texts == tuple(f"{long[0]}{verb}" for verb in VERBS)
    assert read["local_whole_texts"][2].texts == ("犬も",) and read["local_whole_texts"][2].answers == ()


def test_tasks_of_the_harness_are_looked_for_and_their_rest_scored_alone(tasks, wide, tmp_path):
    from tpullm.evaluation import harness, harness_tasks

    files, long = tasks
    text = [{"text": f"{chr(0x4E00 + 31 * n) * 30}。{asked if n in LEAKED else ''}"} for n, asked in enumerate(long)]
    write(tmp_path / "in.jsonl", text)
    source = Source("plants", "jsonl", str(tmp_path / "in.jsonl"), licence="CC0-1.0", filter=False, deduplicate=False)
    corpus = CorpusConfig([source], workers=1, held_out_fraction=0.0, leaks=LeaksConfig([files["choice"]]))
    collect.main(Recipe(corpus=corpus), tmp_path)
    index = harness_tasks.known([files["choice"]])
    found = harness.measure(MeasuredModel(wide), [files["choice"]], index, Asking(), "wide")["local_choice"]
    (asked,) = harness_tasks.questions([files["choice"]], index)
    told = read_before.of_harness(tmp_path, "local_choice", asked.version, found["scores"])
    right = [value for number, value in found["scores"]["acc"].items() if number not in LEAKED]
    assert (told["asked"], told["found"], told["unread"]["acc"]["count"]) == (10, 3, 7)
    assert told["unread"]["acc"]["value"] == sum(right) / 7 and len(found["scores"]["acc"]) == 10
    assert read_before.of_harness(tmp_path, "local_choice", "others", found["scores"]) == {"looked_for": False}
