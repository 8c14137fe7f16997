"""Runs on `gs://`: the same bits as on a disk, through outages, and without a request while steps go on."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.run.test_resume import assert_same_bits, metrics
from tpullm.cli.main import main
from tpullm.system import storage
from tpullm.training import programs


@pytest.fixture
def remote_tokens(tiny_run, bucket) -> Path:
    """A run of `tests/tiny.yaml` on `gs://` that is made up to its tokens."""
    remote = bucket / "runs" / "tiny"
    names = [str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()]
    made = [name for name in names if re.match("recipe|documents|tokenizer|tokens", name)]
    storage.remote().upload_all(tiny_run, remote, made)
    return remote


def wait_for_step(process: subprocess.Popen, stage: Path, step: int, timeout: float) -> None:
    """Until the log of a stage on `gs://` has come to a step."""
    began = time.monotonic()
    while time.monotonic() - began < timeout and process.poll() is None:
        if (stage / "metrics.jsonl").exists() and any(line.get("step", 0) >= step for line in metrics(stage)):
            return
        time.sleep(0.2)
    pytest.fail(f"step {step} did not come")


@pytest.mark.ci  # `test_gcs.py` has a short outage
def test_a_training_goes_on_through_an_outage_with_the_same_bits(tiny_run, remote_tokens, storage_server):
    """The server is away for 2 s in a training that saves every 5 of its 30 steps."""
    command = [sys.executable, "-m", "tpullm", "pretrain", "--run", str(remote_tokens)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, remote_tokens / "pretrain", 5, 120)
    storage_server.kill()
    time.sleep(2)
    storage_server.start()
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert metrics(tiny_run / "pretrain") == metrics(remote_tokens / "pretrain")
    assert_same_bits(tiny_run / "pretrain", remote_tokens / "pretrain")
    assert not (remote_tokens / ".lock").exists()


@pytest.mark.ci
def test_while_steps_go_on_nothing_is_asked_of_the_storage(remote_tokens, storage_server, monkeypatch):
    """Between saves there are uploads of the log alone, and with the server away the steps go on as before."""
    seen, real = [], programs.put_rows

    def put(mesh, batch):
        seen.append(len(storage_server.log()))
        if len(seen) == 15:
            storage_server.kill()
        if len(seen) == 29:
            storage_server.start()
        return real(mesh, batch)

    monkeypatch.setattr(programs, "put_rows", put)
    options = ["--pretrain.checkpoint.every_steps=0", "--pretrain.evaluate_every=0", "--pretrain.log_every=1"]
    assert main(["pretrain", "--run", str(remote_tokens), *options]) == 0
    asked = storage_server.log()[seen[2] : seen[14]]
    assert not [line for line in asked if "POST /upload/" not in line and not re.search("tokens%2F.*alt=media", line)]
    assert [line["step"] for line in metrics(remote_tokens / "pretrain") if "loss" in line] == list(range(1, 31))
