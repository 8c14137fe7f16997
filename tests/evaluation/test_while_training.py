"""Measured while training: the training is the same, nothing is copied, and a stop loses nothing."""

import dataclasses
import gc
import math
import os
import re
import signal
from types import SimpleNamespace

import jax
import pytest

from tests.conftest import TINY
from tests.eight_devices import printed
from tests.evaluation import problems
from tests.run.test_resume import assert_same_bits
from tpullm.cli.main import main
from tpullm.corpus import tenki
from tpullm.evaluation import evaluate_tasks, tasks, tenki_truth, while_training
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.tasks import Asking
from tpullm.formats.models import steps
from tpullm.recipe.schema import MeasureConfig, Recipe, TrainConfig, TuningConfig
from tpullm.system.errors import UserError
from tpullm.training.metrics import read_rows

ROWS = [
    {"question": "本をどうしますか。", "choices": ["読みます", "食べます"], "answer": "読みます"},
    {"question": "水をどうしますか。", "choices": ["飲みます", "食べます"], "answer": "飲みます"},
    {"question": "今日は。", "answer": "いい天気です"},
]
SAID = ("measured", "tasks", "samples")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return problems.write(tmp_path_factory.mktemp("questions") / "little.jsonl", ROWS)


def rows(stage):
    found = [row for row in read_rows(stage / "metrics.jsonl") if "measured" in row]
    return {row["step"]: {name: row[name] for name in SAID} for row in found}


@pytest.mark.ci
def test_the_training_is_the_same_and_a_stop_during_a_measurement_loses_nothing(
    tiny_run, tiny_tokens, questions, monkeypatch
):
    """The parameters have the bits of the run that measures nothing, though it was stopped while it measured."""
    stopped, between = [], []
    figures = evaluate_tasks.measure_tasks

    def stops(model, *arguments):
        between.append(model.session)
        if model.parameters == "step 15" and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return figures(model, *arguments)

    monkeypatch.setattr(evaluate_tasks, "measure_tasks", stops)
    words = {"every": 15, "tasks": f"[{questions}]", "limit": 3, "prompts": "[今日は, 'The ']", "sample_tokens": 4}
    options = [f"--pretrain.measure.{key}={value}" for key, value in words.items()]
    command = ["pretrain", "--run", str(tiny_tokens), *options, "--pretrain.checkpoint.every_steps=10"]
    stage = tiny_tokens / "pretrain"
    assert main(command) == 130
    assert steps(stage / "checkpoints") == [10, 15] and list(rows(stage)) == [0], "saved where it measures again"
    assert main(command) == 0
    found = rows(stage)
    assert list(found) == [0, 15, 30] and len(between) == 4
    assert_same_bits(stage, tiny_run / "pretrain")
    assert found[0]["samples"] != found[30]["samples"] and found[30]["tasks"]["little"]["written"]["count"] == 3


@pytest.mark.slow
def test_a_mesh_measures_the_same(tiny_run, questions):
    """On eight devices, of which some split the rows in time; of all parameters, and of an adapter."""
    alone, sharded = printed("tests.evaluation.sharded_measuring", str(tiny_run / "tokenizer"), questions)
    assert sharded == alone and all(row["measured"] for row in alone)


@pytest.fixture(scope="module")
def measures(wide, questions):

    settings = MeasureConfig(tasks=[questions], prompts=["今日は"], sample_tokens=3)
    config = TrainConfig(steps=100, evaluate_every=40, batch_size=2, measure=settings)
    parts = (wide.tokenizer, wide.architecture, wide.mesh, wide.dtype, 0)
    return while_training.while_training("pretrain", config, *parts)


def places(params):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def measured(measures, wide):
    """One measurement: its row, what the model was asked, where its arrays are, and the bytes that are left of it."""
    asked, seen = [], []

    def noted(ask):
        def noting(self, requests):
            asked.append(list(requests))
            seen.append(places(self.session.params))
            return ask(self, requests)

        return noting

    with pytest.MonkeyPatch.context() as patched, jax.set_mesh(wide.mesh):
        for name in ("likelihoods", "written"):
            patched.setattr(MeasuredModel, name, noted(getattr(MeasuredModel, name)))
        before = {id(array) for array in jax.live_arrays()}
        row = measures.measure(40, wide.params)
        gc.collect(0)  # then XLA drops what it had of numpy: layers share the memory of the stacked arrays on a CPU
        left = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    return SimpleNamespace(row=row, asked=asked, seen=seen, left=left)


def test_the_model_in_use_has_the_arrays_of_the_training_and_keeps_none(measured, wide):
    assert measured.seen == [places(wide.params)] * 2
    assert measured.left < sum(leaf.nbytes for leaf in jax.tree.leaves(wide.params)) / 10


def test_the_figures_are_those_of_evaluate(measured, wide, questions, tmp_path):
    row, chosen = measured.row, tasks.tasks_named([questions])
    results, _ = evaluate_tasks.evaluate_and_write(wide, "small", chosen, Asking(limit=200), str(tmp_path))
    results["tasks"]["little"].pop("read_before")
    assert row["tasks"] == results["tasks"]
    assert row["measured"]["little/written answer"] == row["tasks"]["little"]["written"]["share"]
    assert [each["prompt"] for each in row["samples"]] == ["今日は"]


def test_what_it_costs_is_what_is_asked(measures, measured):
    """The tokens of the line are those of the requests that the model then gets."""
    likely, writing = measured.asked
    read = sum(len(ids) for ids in {of.context for of in likely}) + sum(len(of.continuation) for of in likely)
    read += sum(len(of.prompt) for of in writing)
    written = sum(of.tokens for of in writing) + 3
    assert [step for step in range(101) if measures.due(step)] == [0, 40, 80, 100]
    share = 4 * (read / 3 + written) / (100 * 2 * 256)
    said = f"3 questions, 1 text on the way: at most {4 * (read + written):,} tokens, {share:.1%} of the training"
    assert measures.cost() == f"pretrain: 4 times {said}"


def test_early_measurements_are_at_halvings_of_the_first_interval(measures):
    early = dataclasses.replace(measures.config.measure, every=40, early=3)
    one = dataclasses.replace(measures, config=dataclasses.replace(measures.config, measure=early))
    assert [step for step in range(101) if one.due(step)] == [0, 5, 10, 20, 40, 80, 100]
    branch = dataclasses.replace(one, first=60)
    assert [step for step in range(60, 101) if branch.due(step)] == [60, 65, 70, 80, 100]


def test_the_words_of_a_blank_are_all_of_the_language_beside_the_true_ones(measures, wide, monkeypatch):
    """Of a model by which every text is twice as likely as the same text with one more character."""
    scored = []

    def score(session, texts):
        scored.extend(texts)
        return [-math.log(2) * len(text) for text in texts]

    monkeypatch.setattr(tenki_truth, "text_log_probabilities", score)
    settings = MeasureConfig(blanks=["今日はとても【?】天気ですね。"])
    asks = dataclasses.replace(
        measures, tasks=tasks.Tasks(), config=dataclasses.replace(measures.config, measure=settings)
    )
    with jax.set_mesh(wide.mesh):
        (row,) = asks.measure(40, wide.params)["blanks"]
    assert scored == [f"今日はとても{word}天気ですね。" for word in tenki.words()]
    total = sum(2.0 ** -len(word) for word in tenki.words())
    truth = tenki.blank(row["text"])
    assert [word["word"] for word in row["words"]][: len(truth)] == list(truth)
    model = {word["word"]: word["model"] for word in row["words"]}
    assert model["いい"] == pytest.approx(2.0**-2 / total) and model["暖かい"] == pytest.approx(2.0**-3 / total)
    read = sum(len(wide.tokenizer.encode(text)) for text in scored)
    assert f"1 blank on the way: at most {4 * read:,} tokens" in asks.cost()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blanks": ["今日は雨です。"]}, "talk.measure.blanks: 0 times 【?】"),
        ({"blanks": ["【?】 is no sentence of it"]}, "talk.measure.blanks: no word of tenki fits"),
        ({"tasks": ["nowhere.jsonl"]}, "nowhere.jsonl: no such file of questions; correct the name"),
        ({"shots": 3}, "talk.measure.shots: 3, and little has 3 questions"),
        ({"prompts": ["日" * 600]}, "talk.measure.prompts: '日"),
        ({"chat": True}, "talk.measure.chat: the model's tokenizer has no chat template"),
    ],
)
def test_what_can_not_be_measured_is_said_before_the_training(changes, message, measures, wide, monkeypatch):
    if "chat" in changes:
        monkeypatch.setattr(type(wide.tokenizer), "has_template", False)
    config = TrainConfig(measure=dataclasses.replace(measures.config.measure, **changes))
    parts = (config, wide.tokenizer, wide.architecture, wide.mesh, wide.dtype, 0)
    with pytest.raises(UserError, match=re.escape(message)):
        while_training.while_training("talk", *parts)


def test_a_run_names_a_missing_file_before_it_collects_and_a_stage_that_is_made_needs_none(tiny_run, tmp_path, capsys):
    command = ["run", "--config", str(TINY), "--run", str(tmp_path / "run"), "--pretrain.measure.tasks=[no.jsonl]"]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("tpullm: pretrain.measure.tasks: ")
    assert not (tmp_path / "run" / "documents").exists()
    training = TrainConfig(measure=MeasureConfig(tasks=["no.jsonl"]))
    recipe = Recipe(pretrain=training, finetune={"talk": TuningConfig(train=training)})
    tasks.check_training_tasks(recipe, tiny_run)
    with pytest.raises(UserError, match=r"finetune.talk.train.measure.tasks: .*no.jsonl"):
        tasks.check_training_tasks(dataclasses.replace(recipe, pretrain=TrainConfig()), tiny_run / "nowhere")
