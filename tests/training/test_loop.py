"""The training loop as a command runs it."""

import os
import shutil
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tpullm.cli.main import main
from tpullm.formats.checkpoints import Checkpoints
from tpullm.recipe.schema import OptimizerConfig
from tpullm.training import evaluation, loop, step
from tpullm.training.meter import Meter
from tpullm.training.metrics import read
from tpullm.training.optimizer.chain import learning_rate, learning_rates


@pytest.mark.ci
def test_a_command_traces_each_program_once(tiny_tokens, monkeypatch):
    """The step and the evaluation: batches, sources, checkpoints and repeated evaluations share one program.

    A resumed training is like a new one: one trace and one compiled program.
    """
    traced, steps = {"step": 0, "evaluation": 0}, []

    def counted(name, function):
        def call(*arguments, **options):
            traced[name] += 1
            return function(*arguments, **options)

        return call

    def kept(*arguments, **options):
        steps.append(step.make_step(*arguments, **options))
        return steps[-1]

    evaluation.make_evaluation.cache_clear()
    monkeypatch.setattr(loop, "make_step", kept)
    monkeypatch.setattr(step, "batch_loss", counted("step", step.batch_loss))
    monkeypatch.setattr(evaluation, "batch_loss", counted("evaluation", evaluation.batch_loss))
    assert main(["pretrain", "--run", str(tiny_tokens)]) == 0
    assert traced == {"step": 1, "evaluation": 1}
    stage = tiny_tokens / "pretrain"
    (stage / "manifest.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "30")
    evaluation.make_evaluation.cache_clear()  # as in a new process
    assert main(["pretrain", "--run", str(tiny_tokens)]) == 0
    assert [row["step"] for row in read(stage / "metrics.jsonl") if "loss" in row] == [5, 10, 15, 20, 25, 30]
    assert traced == {"step": 2, "evaluation": 2}
    assert main(["finetune", "--run", str(tiny_tokens)]) == 0
    assert traced == {"step": 3, "evaluation": 2}, "another optimizer is another step; held-out text is read as before"
    assert [function._cache_size() for function in steps] == [1, 1, 1]


def test_checkpoints_are_saved_when_their_minutes_are_over(tiny_tokens, monkeypatch):
    """By a clock that goes on by 16 s with every step. The program is that of the tiny run: only its steps are many."""
    clock, dispatched = [0.0], Meter.dispatched

    def on(self, *arguments):
        clock[0] += 16
        dispatched(self, *arguments)

    monkeypatch.setattr(Meter, "dispatched", on)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: saved.append(step) or save(self, step, *rest))
    options = ["--pretrain.checkpoint.every_steps=0", "--pretrain.checkpoint.every_minutes=1"]
    options += ["--pretrain.log_every=8", "--pretrain.evaluate_every=8"]
    assert main(["pretrain", "--run", str(tiny_tokens), *options]) == 0
    assert saved == [4, 8, 12, 16, 20, 24, 28, 30], "and at the end"
    rows = read(tiny_tokens / "pretrain" / "metrics.jsonl")
    for kind in ("loss", "eval_loss"):  # every eighth step is logged and evaluated, and so is the last
        found = [(row["step"], row["tokens"]) for row in rows if kind in row]
        assert found == [(step, step * 8 * 128) for step in (8, 16, 24, 30)]


@pytest.mark.parametrize(
    ("first", "last"), [pytest.param(3, 4, marks=pytest.mark.slow), pytest.param(29, 40, marks=pytest.mark.ci)]
)
def test_steps_are_recorded_for_xprof_and_perfetto(tiny_tokens, first, last, capsys):
    """Those that are there; and what was trained is not touched by it. The programs are those of the tiny run."""
    assert main(["pretrain", "--run", str(tiny_tokens), f"--pretrain.profile={first}:{last}"]) == 0
    (folder,) = (tiny_tokens / "pretrain" / "profile" / "plugins" / "profile").iterdir()
    (recorded,) = folder.glob("*.xplane.pb")
    planes = {plane.name for plane in jax.profiler.ProfileData.from_file(str(recorded)).planes}
    assert any("CPU" in name for name in planes) and (folder / "perfetto_trace.json.gz").is_file()
    assert f"steps {first} to {last} are recorded" in capsys.readouterr().err


@pytest.mark.ci
def test_the_log_of_a_model_with_experts_tells_their_loads(tiny_tokens):
    options = ["--model.experts=4", "--model.balance_rate=0.001", "--model.mlp_width=32", "--pretrain.steps=2"]
    options += ["--model.layers=1"]
    assert main(["pretrain", "--run", str(tiny_tokens), *options, "--pretrain.log_every=1"]) == 0
    rows = [row for row in read(tiny_tokens / "pretrain" / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        # multiples of an even load, so their mean is 1 up to float32
        np.testing.assert_allclose(np.mean(row["expert_loads"]), 1, rtol=1e-6)
        assert len(row["expert_loads"]) == 4 and row["balance_loss"] > 0.9
        assert 0 <= row["expert_load"]["lowest"] <= min(row["expert_loads"])
        assert row["expert_load"]["highest"] >= max(row["expert_loads"])


def test_the_logged_learning_rates_are_the_schedule():
    for schedule in ("cosine", "wsd"):
        config = OptimizerConfig(schedule=schedule, warmup_steps=5)
        one_by_one = [float(learning_rate(config, 40)(number)) for number in range(40)]
        # float32, and one program may round otherwise than its operations one by one
        np.testing.assert_allclose(learning_rates(config, 40), one_by_one, rtol=1e-6)


def test_ctrl_c_stops_a_training_but_not_one_in_the_background():
    """A shell makes background processes ignore Ctrl-C; SIGTERM stops both."""
    for in_background in (False, True):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
        try:
            with loop._stop_signal() as stopped:
                os.kill(os.getpid(), signal.SIGINT)
                assert stopped() is not in_background
            with loop._stop_signal() as stopped:
                assert not stopped()
                os.kill(os.getpid(), signal.SIGTERM)
                assert stopped()
        finally:
            signal.signal(signal.SIGINT, before)
