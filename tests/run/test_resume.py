"""Nothing is lost: a training that is killed and started again ends with the very same parameters."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, interruptible, tpullm
from tests.training.small import mesh
from tpullm.cli.main import main
from tpullm.formats.models import find, load_params
from tpullm.model.architecture import Architecture


def final_parameters(stage: Path) -> list[np.ndarray]:
    """The parameters of the last save of a stage."""
    model = find(stage)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(model, Architecture(model.config).placed(mesh())))]


def assert_same_bits(one: Path, other: Path) -> None:
    for a, b in zip(final_parameters(one), final_parameters(other), strict=True):
        assert a.tobytes() == b.tobytes()


def metrics(stage: Path, *leave_out: str) -> list[dict]:
    """The lines of `metrics.jsonl` without the figures of time, and at the end the losses of all steps."""
    timed = {"tokens_per_second", "step_seconds", "mfu", "data_wait_share"}
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    # A checkpoint between two lines has a line of its own, with the losses of its steps.
    losses = {"losses": sum((line.pop("losses", []) for line in lines), [])}
    rows = [{key: value for key, value in line.items() if key not in timed} for line in lines]
    return [*(row for row in rows if row.keys() != {"step"}), losses]


def start(run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tpullm", "pretrain", "--run", str(run)]
    with interruptible():
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_save(process: subprocess.Popen, run: Path, step: int, timeout: float = 120) -> None:
    """Until a save of `step` or later is there or being written."""
    began, checkpoints = time.monotonic(), run / "pretrain" / "checkpoints"
    while time.monotonic() - began < timeout and process.poll() is None:
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        if any(int(name.split(".")[0]) >= step for name in names if name.split(".")[0].isdigit()):
            return
        time.sleep(0.002)


@pytest.mark.slow  # one of the kills below
def test_killed_in_a_save_and_restarted_is_the_uninterrupted_run(tiny_run, tiny_tokens):
    process = start(tiny_tokens)
    wait_for_save(process, tiny_tokens, 10)
    process.kill()
    process.wait()
    assert not (tiny_tokens / "pretrain" / "manifest.json").exists()
    tpullm("pretrain", "--run", tiny_tokens)
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")
    assert metrics(tiny_run / "pretrain") == metrics(tiny_tokens / "pretrain")


@pytest.mark.ci
def test_killed_between_the_last_save_and_the_manifest_is_the_uninterrupted_run(tiny_run, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run, run)
    whole = json.loads((run / "pretrain" / "manifest.json").read_text())
    (run / "pretrain" / "manifest.json").unlink()
    tpullm("pretrain", "--run", run)
    again = json.loads((run / "pretrain" / "manifest.json").read_text())
    assert {**again, "finished": 0} == {**whole, "finished": 0}
    assert metrics(run / "pretrain") == metrics(tiny_run / "pretrain")


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_leaves_with_a_line_and_goes_on_bit_for_bit(tiny_run, tiny_tokens, number):
    process = start(tiny_tokens)
    wait_for_save(process, tiny_tokens, 5)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "stopped and saved at step" in said.splitlines()[-1]
    assert main(["pretrain", "--run", str(tiny_tokens), "--pretrain.data_workers=0"]) == 0
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")


@pytest.mark.parametrize("count", [pytest.param(3, marks=pytest.mark.ci), pytest.param(9, marks=pytest.mark.slow)])
def test_kills_at_random_moments(tiny_tokens, tmp_path, count):
    """-9 some times: first when a save begins (there is one every 5 steps), then after a random time."""
    whole = tmp_path / "whole"
    shutil.copytree(tiny_tokens, whole)
    tpullm("pretrain", "--run", whole, "--pretrain.steps", 20 * (1 + count))
    shutil.copy(whole / "recipe.yaml", tiny_tokens)
    moments = random.Random(0)
    kills = 0
    for _ in range(30):
        process = start(tiny_tokens)
        wait_for_save(process, tiny_tokens, 5 * (1 + kills))
        time.sleep(moments.uniform(0, 0.3) if kills else 0)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        if kills == count:
            break
        if (tiny_tokens / "pretrain" / "manifest.json").exists():
            pytest.fail(f"finished after {kills} kills; make the run longer")
    tpullm("pretrain", "--run", tiny_tokens)
    assert_same_bits(whole / "pretrain", tiny_tokens / "pretrain")
    assert metrics(whole / "pretrain") == metrics(tiny_tokens / "pretrain")
