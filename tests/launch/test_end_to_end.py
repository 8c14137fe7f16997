"""A run whose machines are taken back ends with the same bits as one on four processes that nobody disturbs."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.conftest import make_job
from tests.launch.fake_tpu import BUSY, LOST
from tests.launch.rest import Fault
from tests.launch.test_supervisor import machine_variables
from tests.run.test_resume import assert_same_bits, metrics
from tests.training.several_hosts import QUICK_TO_COMPILE
from tpullm.cli import launch
from tpullm.launch import tpu_vm, watch
from tpullm.system import storage

STEPS = ["--mesh.fsdp", "4", "--pretrain.steps", "60", "--pretrain.evaluate_every", "0"]
VARIABLES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {QUICK_TO_COMPILE}"}


def start_local(run: Path) -> subprocess.Popen:
    """`tpullm launch local`, as a user types it."""
    command = [sys.executable, "-m", "tpullm", "launch", "local", "--processes", "4"]
    command += ["--", "pretrain", "--config", str(run / "recipe.yaml"), "--run", str(run), *STEPS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | VARIABLES, **pipes)


def saved(run: Path) -> int:
    """The step of the last checkpoint."""
    folder = run / "pretrain" / "checkpoints"
    try:
        return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_four_machines_that_are_taken_back_twice(start_tpu, bucket, tiny_tokens, tmp_path):
    """Two preemptions (one without a notice), a lost answer, one 429: the same bits, and no resource is left."""
    whole = tmp_path / "whole"
    shutil.copytree(tiny_tokens, whole)
    assert start_local(whole).wait(300) == 0
    fake = start_tpu(machine_variables(tmp_path))
    run = bucket / "run"
    for path in sorted(tiny_tokens.rglob("*")):
        if path.is_file():
            (run / str(path.relative_to(tiny_tokens))).write_bytes(path.read_bytes())
    command = ["pretrain", "--config", str(tiny_tokens / "recipe.yaml"), *STEPS]
    job = make_job(str(run), *command, python=sys.executable, environment=VARIABLES)
    launch.upload_launch(job)
    fake.faults += [LOST, Fault("GET", "", BUSY)]
    threading.Thread(target=take_away, args=(fake, job.name, run), daemon=True).start()
    began = time.monotonic()
    assert not watch.follow(job, tpu_vm, watch.Pace())
    print(f"launched, taken back twice and finished in {time.monotonic() - began:.0f} s")
    assert fake.resources == {}
    assert fake.counts == {f"{method} {job.name}-{n}": 1 for method in ("POST", "DELETE") for n in (1, 2, 3)}
    here = storage.local_copy(run / "pretrain")
    assert_same_bits(whole / "pretrain", here)
    assert metrics(whole / "pretrain") == metrics(here)


def take_away(fake, name: str, run: Path) -> None:
    """Take the machines of the first attempt back with a notice, those of the second without."""
    for number, (step, notice) in enumerate([(5, 20.0), (25, 0.0)], 1):
        while saved(run) < step or f"{name}-{number}" not in fake.machines:
            time.sleep(0.2)
        fake.preempt(f"{name}-{number}", notice)
