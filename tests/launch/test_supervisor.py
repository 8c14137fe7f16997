"""A machine's start-up script and supervisor, run as processes by a fake TPU service.

The verb is a stand-in that ends as each test says; `test_end_to_end.py` runs the real one.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.conftest import make_job
from tests.launch.fake_tpu import TOKEN
from tpullm.cli import launch
from tpullm.launch import tpu_vm, watch
from tpullm.launch.record import Record

VERB = """
import json, os, pathlib, signal, sys, time
index = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--hosts.index"))
count = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--hosts.count"))
folder = pathlib.Path(os.environ["STUB"])
start = len(list(folder.glob(f"started-{index}-*")))
(folder / f"started-{index}-{start}").write_text(json.dumps(sys.argv))
ends = json.loads((folder / "ends.json").read_text())[index]
code, seconds, line = ends[min(start, len(ends) - 1)]
def stop(*_):
    print("tpullm: stopped and saved at step 5", flush=True)
    os._exit(130)
signal.signal(signal.SIGTERM, stop)
time.sleep(seconds)
print(line, flush=True)
os._exit(code)
"""


def machine_variables(folder: Path) -> dict[str, str]:
    """The environment variables of a start-up script: those of a machine, and no others of this process."""
    return {"PATH": os.environ["PATH"], "STORAGE_EMULATOR_HOST": os.environ["STORAGE_EMULATOR_HOST"]}


@pytest.fixture
def stub(tmp_path) -> Callable[[list], dict[str, str]]:
    """Makes a stand-in for the verb. For each host, how each start ends: (exit code, after seconds, last line)."""

    def make(ends: list) -> dict[str, str]:
        folder = tmp_path / "stub"
        (folder / "tpullm").mkdir(parents=True)
        (folder / "tpullm" / "__init__.py").touch()
        (folder / "tpullm" / "__main__.py").write_text(VERB)
        (folder / "ends.json").write_text(json.dumps(ends))
        return {"PYTHONPATH": str(folder), "STUB": str(folder)}

    return make


@pytest.fixture
def launched(bucket, start_tpu, stub, tmp_path):
    """Launches two slices of one host each; the fake service, the job and its record."""

    def go(ends: list, **settings):
        fake = start_tpu(machine_variables(tmp_path))
        run = f"{bucket}/run"
        job = make_job(
            run, accelerator="v5litepod-4", slices=2, python=sys.executable, environment=stub(ends), **settings
        )
        launch.upload_launch(job)
        return fake, job, Record(job.folder)

    return go


def starts(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "stub").glob("started-*"))


def logs(record: Record, number: int) -> str:
    folder = record.attempt_folder(number) / "logs"
    return "".join((folder / name).read_text() for name in record.logs(number))


@pytest.mark.ci
def test_hosts_find_their_places_run_the_verb_and_report(launched, storage_server, tmp_path):
    """And no file has the token of a machine."""
    fake, job, record = launched([[(0, 0, "all done here")], [(0, 0.5, "and here")]])
    assert not watch.follow(job, tpu_vm, watch.Pace())
    assert fake.resources == {} and starts(tmp_path) == ["started-0-0", "started-1-0"]
    assert [(ended.host, ended.code, ended.line) for ended in record.exits(1)] == [
        (0, 0, "all done here"),
        (1, 0, "and here"),
    ]
    (first, second) = (json.loads((tmp_path / "stub" / f"started-{n}-0").read_text())[1:] for n in (0, 1))
    assert first[:2] == ["pretrain", "--config"] and first[3:5] == ["--hosts.index=0", "--hosts.count=2"]
    assert second[3:] == ["--hosts.index=1", "--hosts.count=2", first[5]], "the same coordinator"
    assert "the TPU's metadata" in logs(record, 1) and "all done here" in logs(record, 1)
    folders = (tmp_path, Path(storage_server._folder))
    searched = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(searched) > 20 and [path for path in searched if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.slow  # `test_host.py` has the notice, and what the verb ends with
def test_a_notice_stops_the_verb_which_saves_and_another_attempt_goes_on(launched, tmp_path):
    fake, job, record = launched([[(0, 60, "too late"), (0, 0, "done")]] * 2)
    from tests.launch.test_tpu_vm import when

    name = f"{job.name}-1"
    when(lambda: len(starts(tmp_path)) == 2, lambda: (time.sleep(0.5), fake.preempt(name, 6.0)))
    assert not watch.follow(job, tpu_vm, watch.Pace())
    assert "stopped and saved at step 5" in logs(record, 1) and "done" in logs(record, 2)
    assert {ended.code for ended in record.exits(1)} <= {130, 75} and fake.resources == {}


@pytest.mark.parametrize("name", ["startup.sh", "gpudirect.sh"])
def test_shellcheck_finds_nothing(name):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    script = Path(tpu_vm.__file__).with_name(name)
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
