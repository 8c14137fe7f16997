"""A machine's start-up script and supervisor, run as processes by a fake TPU service.

The verb is a stand-in that ends as each test says, or the real one: a run whose machines are taken back ends with the
same bits as one on four processes that nobody disturbs.
"""

import contextlib
import json
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
from tests.launch.fake_tpu import BUSY, LOST, TOKEN
from tests.launch.rest import Fault
from tests.run.test_resume import assert_same_bits, metrics
from tests.training.several_hosts import QUICK_TO_COMPILE
from tpullm.cli import launch
from tpullm.launch import tpu_vm, watch
from tpullm.launch.record import Record
from tpullm.system import storage

VERB = """
import json, os, pathlib, sys, time
index = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--hosts.index"))
with open(pathlib.Path(os.environ["STUB"]) / f"started-{index}", "x") as file:  # once
    json.dump(sys.argv, file)
time.sleep(index / 2)
print(f"host {index} is done", flush=True)
"""


def machine_variables() -> dict[str, str]:
    """Of a start-up script: those of a machine, and no others of this process."""
    return {name: os.environ[name] for name in ("PATH", "STORAGE_EMULATOR_HOST")}


@pytest.mark.ci
def test_hosts_find_their_places_run_the_verb_and_report(bucket, start_tpu, storage_server, tmp_path):
    """Of two slices of one host each. And no file has the token of a machine."""
    stub = tmp_path / "stub"
    (stub / "tpullm").mkdir(parents=True)
    (stub / "tpullm" / "__init__.py").touch()
    (stub / "tpullm" / "__main__.py").write_text(VERB)
    own = {"python": sys.executable, "environment": {"PYTHONPATH": str(stub), "STUB": str(stub)}}
    fake, job = start_tpu(machine_variables()), make_job(f"{bucket}/run", accelerator="v5litepod-4", slices=2, **own)
    launch.upload_launch(job)
    assert not watch.follow(job, tpu_vm, watch.Pace()) and fake.resources == {}
    record = Record(job.folder)
    ends = [(ended.host, ended.code, ended.line) for ended in record.exits(1)]
    assert ends == [(0, 0, "host 0 is done"), (1, 0, "host 1 is done")]
    first, second = (json.loads((stub / f"started-{index}").read_text())[1:] for index in (0, 1))
    assert first[:2] == ["pretrain", "--config"] and first[3:5] == ["--hosts.index=0", "--hosts.count=2"]
    assert second[3:] == ["--hosts.index=1", "--hosts.count=2", first[5]], "the same coordinator"
    text = "".join((record.attempt_folder(1) / "logs" / name).read_text() for name in record.logs(1))
    assert "the TPU's metadata" in text and "host 0 is done" in text
    folders = (tmp_path, Path(storage_server._folder))
    searched = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(searched) > 20 and [path for path in searched if TOKEN.encode() in path.read_bytes()] == []


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    script = Path(tpu_vm.__file__).with_name("startup.sh")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


STEPS = ["--mesh.fsdp", "4", "--pretrain.steps", "60", "--pretrain.evaluate_every", "0"]
VARIABLES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {QUICK_TO_COMPILE}"}


def saved(run: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        steps = [path.name for path in (run / "pretrain" / "checkpoints").iterdir()]
        return max((int(step) for step in steps if step.isdigit()), default=0)
    return 0


@pytest.mark.slow
def test_four_machines_that_are_taken_back_twice(start_tpu, bucket, tiny_tokens, tmp_path):
    """Two preemptions (one without a notice), a lost answer, one 429: the same bits, and no resource is left."""
    whole = tmp_path / "whole"
    shutil.copytree(tiny_tokens, whole)
    command = [sys.executable, "-m", "tpullm", "launch", "local", "--processes", "4"]
    command += ["--", "pretrain", "--config", str(whole / "recipe.yaml"), "--run", str(whole), *STEPS]
    subprocess.run(command, cwd=ROOT, env=os.environ | VARIABLES, capture_output=True, check=True, timeout=300)
    fake = start_tpu(machine_variables())
    run = bucket / "run"
    for path in sorted(tiny_tokens.rglob("*")):
        if path.is_file():
            (run / str(path.relative_to(tiny_tokens))).write_bytes(path.read_bytes())
    command = ["pretrain", "--config", str(tiny_tokens / "recipe.yaml"), *STEPS]
    job = make_job(str(run), *command, python=sys.executable, environment=VARIABLES)
    launch.upload_launch(job)
    fake.faults += [LOST, Fault("GET", "", BUSY)]
    threading.Thread(target=take_away, args=(fake, job.name, run), daemon=True).start()
    assert not watch.follow(job, tpu_vm, watch.Pace())
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
