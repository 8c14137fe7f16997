"""Measured while training: the training is the same, nothing is copied, and a stop loses nothing."""

import dataclasses
import json
import os
import re
import signal

import jax
import pytest

from tests.conftest import TINY, copy_tokens
from tests.eight_devices import printed
from tests.run.test_resume import assert_same_bits
from tpullm.cli.main import main
from tpullm.evaluation import evaluate_tasks, tasks, while_training
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.programming_task import ONCE
from tpullm.evaluation.tasks import Asking
from tpullm.formats.models import steps
from tpullm.recipe.schema import MeasureConfig, Recipe, TrainConfig, TuningConfig
from tpullm.system.errors import UserError
from tpullm.training.metrics import read

ROWS = [
    {"question": "本をどうしますか。", "choices": ["読みます", "食べます"], "answer": "読みます"},
    {"question": "水をどうしますか。", "choices": ["飲みます", "食べます"], "answer": "飲みます"},
    {"question": "今日は。", "answer": "いい天気です"},
]
SAID = ("measured", "tasks", "samples")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "little.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def options(questions):
    words = {"every": 15, "tasks": f"[{questions}]", "limit": 3, "prompts": "[今日は, 'The ']", "sample_tokens": 4}
    return [f"--pretrain.measure.{key}={value}" for key, value in words.items()]


def rows(stage):
    found = [row for row in read(stage / "metrics.jsonl") if "measured" in row]
    return {row["step"]: {name: row[name] for name in SAID} for row in found}


@pytest.mark.ci
def test_the_training_is_the_same_and_a_stop_during_a_measurement_loses_nothing(
    tiny_run, tiny_tokens, questions, monkeypatch
):
    """The parameters have the bits of the run that measures nothing, though it was stopped while it measured."""
    stopped, between = [], []
    figures = evaluate_tasks.measured

    def stops(model, *arguments):
        between.append(model.session)
        if model.parameters == "step 15" and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return figures(model, *arguments)

    monkeypatch.setattr(evaluate_tasks, "measured", stops)
    command = ["pretrain", "--run", str(tiny_tokens), *options(questions), "--pretrain.checkpoint.every_steps=10"]
    stage = tiny_tokens / "pretrain"
    assert main(command) == 130
    assert steps(stage / "checkpoints") == [10, 15] and list(rows(stage)) == [0], "saved where it measures again"
    assert main(command) == 0
    found = rows(stage)
    assert list(found) == [0, 15, 30] and len(between) == 4
    assert_same_bits(stage, tiny_run / "pretrain")
    assert found[0]["samples"] != found[30]["samples"] and found[30]["tasks"]["little"]["written"]["count"] == 3


@pytest.mark.slow
def test_a_measurement_that_was_cut_off_is_that_of_a_whole_training(tiny_run, tmp_path, questions, monkeypatch):
    """So is one whose process was killed after the checkpoint: the rows are the same."""
    whole, killed = (copy_tokens(tiny_run, tmp_path / name) for name in ("whole", "killed"))
    command = [*options(questions), "--pretrain.checkpoint.every_steps=15"]
    assert main(["pretrain", "--run", str(whole), *command]) == 0

    def dies(model, *arguments, figures=evaluate_tasks.measured):
        if model.parameters == "step 15":
            raise UserError("no more memory")
        return figures(model, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(evaluate_tasks, "measured", dies)
        assert main(["pretrain", "--run", str(killed), *command]) == 2
    assert main(["pretrain", "--run", str(killed), *command]) == 0
    assert rows(killed / "pretrain") == rows(whole / "pretrain") and list(rows(whole / "pretrain")) == [0, 15, 30]
    assert_same_bits(killed / "pretrain", whole / "pretrain")


@pytest.mark.slow
def test_a_mesh_measures_the_same_and_no_state_changes_by_it(tiny_run, questions):
    """On eight devices, of which some split the rows in time; of all parameters, and of an adapter."""
    results = printed("tests.evaluation.sharded_measuring", str(tiny_run / "tokenizer"), str(questions))
    found = {(mesh, adapter, measures): of for mesh, adapter, measures, of in results}
    for mesh, adapter, measures in found:
        assert found[mesh, adapter, measures]["state"] == found[mesh, adapter, False]["state"]
        if measures:
            rows, alone = found[mesh, adapter, True]["rows"], found["one", adapter, True]["rows"]
            assert rows == alone and len(rows) == 2 and rows[0]["measured"]


@pytest.fixture
def measures(wide, questions):
    """Measures the small model."""
    settings = MeasureConfig(tasks=[str(questions)], prompts=["今日は"], sample_tokens=3)
    config = TrainConfig(steps=100, evaluate_every=40, batch_size=2, measure=settings)
    parts = (wide.tokenizer, wide.architecture, wide.mesh, wide.dtype, 0)
    return while_training.while_training("pretrain", config, *parts)


def test_the_model_in_use_has_the_arrays_of_the_training_and_keeps_none(measures, wide, monkeypatch):
    seen, figures, places = [], evaluate_tasks.measured, []

    def watched(model, *arguments):
        seen.extend(leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(model.session.params))
        return figures(model, *arguments)

    monkeypatch.setattr(evaluate_tasks, "measured", watched)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(wide.params)]
    before = {id(array) for array in jax.live_arrays()}
    with jax.set_mesh(wide.mesh):
        measures.measure(0, wide.params)
    assert seen == places
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in new) < sum(leaf.nbytes for leaf in jax.tree.leaves(wide.params)) / 10


def test_the_figures_are_those_of_evaluate(measures, wide, questions, tmp_path):
    with jax.set_mesh(wide.mesh):
        row = measures.measure(40, wide.params)
    chosen, asking = tasks.named([str(questions)]), Asking(limit=200)
    results, _ = evaluate_tasks.evaluate(wide, "small", chosen, asking, ONCE, str(tmp_path))
    results["tasks"]["little"].pop("read_before")
    assert row["tasks"] == results["tasks"]
    assert row["measured"]["little/written answer"] == row["tasks"]["little"]["written"]["share"]
    assert [each["prompt"] for each in row["samples"]] == ["今日は"]


def test_what_it_costs_is_what_is_asked(measures, wide, monkeypatch):
    """The tokens of the line are those of the requests that the model then gets."""
    counted = []
    for name in ("likelihoods", "written"):
        ask = getattr(MeasuredModel, name)
        monkeypatch.setattr(
            MeasuredModel, name, lambda self, asked, ask=ask: counted.append(list(asked)) or ask(self, asked)
        )
    with jax.set_mesh(wide.mesh):
        measures.measure(0, wide.params)
    likely, writing = counted
    read = sum(len(ids) for ids in {of.context for of in likely}) + sum(len(of.continuation) for of in likely)
    read += sum(len(of.prompt) for of in writing)
    written = sum(of.tokens for of in writing) + 3
    assert [step for step in range(101) if measures.due(step)] == [0, 40, 80, 100]
    share = 4 * (read / 3 + written) / (100 * 2 * 256)
    said = f"3 questions, 1 text on the way: at most {4 * (read + written):,} tokens, {share:.1%} of the training"
    assert f"pretrain: 4 times {said}" in measures.cost()
    dear = dataclasses.replace(measures, config=dataclasses.replace(measures.config, steps=10))
    assert "smaller measure.limit" in dear.cost() and "smaller" not in measures.cost()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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


def test_a_run_names_a_missing_file_before_it_collects(tmp_path, capsys):
    assert (
        main(["run", "--config", str(TINY), "--run", str(tmp_path / "run"), "--pretrain.measure.tasks=[no.jsonl]"]) == 2
    )
    assert capsys.readouterr().err.startswith("tpullm: pretrain.measure.tasks: ")
    assert not (tmp_path / "run" / "documents").exists()


def test_a_stage_that_is_made_needs_its_questions_no_more(tiny_run):
    settings = MeasureConfig(tasks=["no.jsonl"])
    recipe = Recipe(
        pretrain=TrainConfig(measure=settings), finetune={"talk": TuningConfig(train=TrainConfig(measure=settings))}
    )
    tasks.check(recipe, tiny_run)
    with pytest.raises(UserError, match=r"finetune.talk.train.measure.tasks: .*no.jsonl"):
        tasks.check(dataclasses.replace(recipe, pretrain=TrainConfig()), tiny_run / "nowhere")
