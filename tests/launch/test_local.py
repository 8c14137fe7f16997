"""`launch local`: the devices, lines and exit codes of several processes, and the end of all after one fails."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, TINY, interruptible, is_gone, wait_until
from tpullm.launch import job, local
from tpullm.launch.job import LaunchConfig
from tpullm.system.errors import UserError

# The seconds of an end count from when all processes have started: a busy machine starts them late.
VERB = """
import os, pathlib, signal, sys, time
index, count = (int(next(word for word in sys.argv if kind in word).split("=")[1]) for kind in (".index=", ".count="))
def stop(*_):
    print("saved", flush=True)
    os._exit(130)
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("DEAF") else stop)
print("mine:", index, os.environ.get("XLA_FLAGS"), os.environ.get("CUDA_VISIBLE_DEVICES"), sys.argv[-1], flush=True)
(pathlib.Path(os.environ["STARTED"]).parent / f"secret-{index}").write_text(os.environ["TPULLM_HOSTS_SECRET"])
folder = pathlib.Path(os.environ["STARTED"])
(folder / str(index)).touch()
while len(list(folder.iterdir())) < count:
    time.sleep(0.01)
seconds, code = os.environ[f"END{index}"].split()
time.sleep(float(seconds))
os._exit(int(code))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A stand-in for the verb: each process ends as its variable says. Returns a function that runs it."""
    (tmp_path / "tpullm").mkdir()
    (tmp_path / "tpullm" / "__init__.py").touch()
    (tmp_path / "tpullm" / "__main__.py").write_text(VERB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def go(*ends: str, **settings):
        monkeypatch.setenv("STARTED", tempfile.mkdtemp(dir=tmp_path))
        environment = {f"END{index}": end for index, end in enumerate(ends)} | settings.pop("environment", {})
        config = LaunchConfig(processes=len(ends), environment=environment, **settings)
        lines = []
        work = job.make("local", config, ["pretrain", "--config", str(TINY), "--run", str(tmp_path / "run")])
        local.check(work)
        began = time.monotonic()
        code = local.run(work, lambda index, line: lines.append((index, line)))
        return code, lines, time.monotonic() - began

    return go


def test_each_process_has_its_devices_its_lines_and_the_secret(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1 --xla_force_host_platform_device_count=9")
    code, lines, _ = stub("0 0", "0.3 0", devices=3)
    assert code == 0 and [index for index, _ in sorted(lines)] == [0, 1]
    for index, line in lines:
        assert line.startswith(f"mine: {index} --xla_other=1 --xla_force_host_platform_device_count=3 None")
        assert "--hosts.coordinator=127.0.0.1:" in line
    secrets = [(tmp_path / f"secret-{index}").read_text() for index in range(2)]
    assert secrets[0] == secrets[1] and len(secrets[0]) == 64
    assert not any(secrets[0] in line for _, line in lines)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_failure_stops_the_others(stub, monkeypatch, deaf):
    monkeypatch.setattr(local, "SECONDS_TO_NOTICE", 0.3)
    monkeypatch.setattr(local, "SECONDS_TO_END", 0.5 if deaf else 20.0)
    code, lines, seconds = stub("60 0", "0.2 3", environment={"DEAF": "1"} if deaf else {})
    assert code == 3 and seconds < 20 and ((0, "saved") in lines) is not deaf


def children(process: subprocess.Popen) -> list[int]:
    """By /proc: a small Linux has no `ps`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = path.read_text("utf-8").rpartition(")")[2].split()[1]
            found += [int(path.parent.name)] if int(parent) == process.pid else []
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_lets_all_save_and_a_launcher_that_is_killed_leaves_nothing_behind(stub, tmp_path, number):
    """A terminal sends Ctrl-C to the launcher alone; the launcher exits with its own code and one line."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tpullm.cli.main import entry; sys.exit(entry())"
    command = [sys.executable, "-c", program, "launch", "local", "--processes", "2"]
    command += ["--", "pretrain", "--config", str(TINY), "--run", str(tmp_path / "run")]
    environment = os.environ | {"END0": "60 0", "END1": "60 0", "STARTED": tempfile.mkdtemp(dir=tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with interruptible():
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
    wait_until(lambda: len(children(process)) == 2)
    started = children(process)
    assert process.stdout.readline() and process.stdout.readline()
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    wait_until(lambda: all(is_gone(pid) for pid in started))
    if number == signal.SIGINT:
        assert process.returncode == 130 and out.count("saved") == 2, out + said
        assert said == "tpullm: stopped all processes; the same command resumes from the last checkpoint\n"


def make(verb="pretrain", arguments=(), **config) -> job.Job:
    return job.make("local", LaunchConfig(**config), [verb, "--config", str(TINY), *arguments, "--run", "runs/x"])


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local, "NVIDIA_GPUS", tmp_path / "gpus")


def test_each_process_is_told_its_place():
    _, *words = local._process_command(make(processes=2), 1, "127.0.0.1:7")
    assert words[:3] == ["-m", "tpullm", "pretrain"]
    assert words[-3:] == ["--hosts.index=1", "--hosts.count=2", "--hosts.coordinator=127.0.0.1:7"]
    *_, index, count = local._process_command(make(processes=1), 0, "a:1")
    assert (index, count) == ("--hosts.index=0", "--hosts.count=1"), "it joins nobody"


@pytest.mark.parametrize(
    "variables, config, own",
    [
        ({}, {}, {"JAX_PLATFORMS": "cpu"}),
        ({"JAX_PLATFORMS": "cpu,tpu"}, {}, {"JAX_PLATFORMS": "cpu,tpu"}),
        ({}, {"devices": 3}, {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}),
        (
            {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=9"},
            {"devices": 1},
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=1"},
        ),
        ({}, {"environment": {"A": "1"}}, {"A": "1", "JAX_PLATFORMS": "cpu"}),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, {"environment": {"A": "1"}}, {"A": "1", "CUDA_VISIBLE_DEVICES": "6,7"}),
        ({"CUDA_VISIBLE_DEVICES": "4,5", "JAX_PLATFORMS": "cpu"}, {}, {"JAX_PLATFORMS": "cpu"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}, {"JAX_PLATFORMS": "cpu"}),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {}, {"JAX_PLATFORMS": "cpu"}),  # hides all
        ({"CUDA_VISIBLE_DEVICES": "2, 3,-1,4"}, {}, {"CUDA_VISIBLE_DEVICES": "3"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937,MIG-1a2b"}, {}, {"CUDA_VISIBLE_DEVICES": "MIG-1a2b"}),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cuda"}, {}, {"CUDA_VISIBLE_DEVICES": "1"}),
    ],
)
def test_each_process_has_its_devices(monkeypatch, variables, config, own):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local._process_variables(make(processes=2, **config), 1) == own


def test_gpus_of_a_machine_that_names_none_are_counted(tmp_path):
    for number in range(4):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    cards = [local._process_variables(make(processes=2), index)["CUDA_VISIBLE_DEVICES"] for index in (0, 1)]
    assert cards == ["0,1", "2,3"]
    local.check(make(processes=4))
    with pytest.raises(UserError, match=r"processes: 3 can't share 4 GPU\(s\) evenly"):
        local.check(make(processes=3))


def test_a_mesh_that_does_not_fit_the_devices_of_all_processes_is_refused(monkeypatch):
    """Of processes with CPU devices, and of processes that share GPUs."""
    mesh = ["--mesh.fsdp", "8"]
    local.check(make(processes=4, devices=2, arguments=mesh))
    with pytest.raises(UserError, match=r"does not fit 2 device\(s\).*\(processes: 2, with 1 CPU device\(s\) each\)"):
        local.check(make(processes=2, devices=1, arguments=mesh))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(UserError, match=r"does not fit 4 device\(s\).*\(processes: 2, with 2 GPU device\(s\) each\)"):
        local.check(make(processes=2, arguments=mesh))


def test_a_verb_of_text_uses_the_machine_by_itself():
    with pytest.raises(UserError, match="collect: uses all cores of this machine by itself; run it without `launch lo"):
        local.check(make("collect", processes=2))


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    "ends, code",
    [
        ([(0, 1), (0, 2)], 0),
        ([(75, 1), (7, 5), (0, 1)], 7),
        ([(75, 1), (75, 5)], 75),
        ([(8, 5), (9, 1)], 9),
        ([(0, 1), (3, 2)], 3),
        ([(2, 1), (75, 2), (1, 3)], 2),
    ],
)
def test_the_code_is_that_of_the_first_that_failed_by_itself(monkeypatch, ends, code):
    """No other is stopped: it has no `send`."""
    monkeypatch.setattr(local, "time", clock := Clock())
    polls = [lambda end=end: end[0] if clock.now >= end[1] else None for end in ends]
    assert local.wait_for_children([SimpleNamespace(poll=poll) for poll in polls]) == code
