"""Runs whose machines are taken back, and whose processes are killed, end with the same bits as undisturbed runs."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.conftest import make_job
from tests.launch.fake_tpu import BUSY, LOST
from tests.launch.test_supervisor import machine_variables
from tests.run.test_resume import assert_same_bits, metrics
from tests.training.several_hosts import QUICK_TO_COMPILE
from tpullm.cli import launch
from tpullm.launch import tpu_vm, watch
from tpullm.system import storage

STEPS = ["--mesh.fsdp", "4", "--pretrain.steps", "60", "--pretrain.evaluate_every", "0"]
VARIABLES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {QUICK_TO_COMPILE}"}


def start_local(run: Path, processes: int = 4) -> subprocess.Popen:
    """`tpullm launch local`, as a user types it."""
    command = [sys.executable, "-m", "tpullm", "launch", "local", "--processes", str(processes)]
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


def children(process: subprocess.Popen) -> list[int]:
    """The processes that a launcher started."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


def is_gone(pid: int) -> bool:
    """Whether a process does not run; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


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
    launch.upload(job)
    fake.faults["POST"], fake.faults["GET"] = [LOST], [None, None, BUSY]
    threading.Thread(target=take_away, args=(fake, job.name, run), daemon=True).start()
    began = time.monotonic()
    assert watch.follow(job, tpu_vm, watch.Pace()) == 0
    print(f"launched, taken back twice and finished in {time.monotonic() - began:.0f} s")
    assert fake.resources == {}
    assert fake.calls == {f"{method} {job.name}-{n}": 1 for method in ("POST", "DELETE") for n in (1, 2, 3)}
    here = storage.local_copy(run / "pretrain")
    assert_same_bits(whole / "pretrain", here)
    assert metrics(whole / "pretrain") == metrics(here)


def take_away(fake, name: str, run: Path) -> None:
    """Take the machines of the first attempt back with a notice, those of the second without."""
    for number, (step, notice) in enumerate([(5, 20.0), (25, 0.0)], 1):
        while saved(run) < step or f"{name}-{number}" not in fake.machines:
            time.sleep(0.2)
        fake.preempt(f"{name}-{number}", notice)


@pytest.mark.slow
def test_four_processes_killed_at_twenty_random_moments(tiny_tokens, tmp_path):
    """Twenty times SIGKILL to one of four processes after a random time; the launcher exits with its code."""
    whole = tmp_path / "whole"
    shutil.copytree(tiny_tokens, whole)
    assert start_local(whole).wait(300) == 0
    moments, kills, slowest = random.Random(0), 0, 0.0
    while kills < 20:
        process, before = start_local(tiny_tokens), saved(tiny_tokens)
        threading.Thread(target=process.stdout.read, daemon=True).start()
        wait_for_children(process, 4)
        if moments.random() < 0.7:  # else while they start
            while saved(tiny_tokens) == before and process.poll() is None:
                time.sleep(0.05)
        time.sleep(moments.uniform(0, 8))
        victim = moments.choice(children(process) or [0])
        if process.poll() is None and victim and not is_gone(victim):
            others = children(process)
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            code = process.wait(120)
            slowest = max(slowest, time.monotonic() - began)
            assert code == 137 and all(is_gone(pid) for pid in others)
            kills += 1
        process.wait(300)
        if (tiny_tokens / "pretrain" / "manifest.json").exists() and kills < 20:
            assert_same_bits(whole / "pretrain", tiny_tokens / "pretrain")
            shutil.rmtree(tiny_tokens / "pretrain")
        print(f"kills {kills}, saved {before} to {saved(tiny_tokens)}, the others gone after {slowest:.1f} s at most")
    assert slowest < 30
    assert start_local(tiny_tokens).wait(300) == 0
    assert_same_bits(whole / "pretrain", tiny_tokens / "pretrain")
    assert metrics(whole / "pretrain") == metrics(tiny_tokens / "pretrain")


def wait_for_children(process: subprocess.Popen, count: int) -> None:
    until = time.monotonic() + 120
    while len(children(process)) < count and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def test_a_launcher_that_is_killed_leaves_nothing_behind(tiny_tokens):
    process = start_local(tiny_tokens, processes=2)
    wait_for_children(process, 2)
    started = children(process)
    process.kill()
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(is_gone(pid) for pid in started):
        time.sleep(0.05)
    assert len(started) == 2 and all(is_gone(pid) for pid in started)
