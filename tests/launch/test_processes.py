"""`launch local` without processes: the command and devices of each, and how the ends of several are taken together."""

import pytest

from tests.conftest import TINY
from tpullm.launch import job, local
from tpullm.launch.job import LaunchConfig
from tpullm.system.errors import UserError


def make(verb="pretrain", arguments=(), **config) -> job.Job:
    return job.make("local", LaunchConfig(**config), [verb, "--config", str(TINY), *arguments, "--run", "runs/x"])


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without GPUs, on which nothing is set."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local, "NVIDIA_GPUS", tmp_path / "gpus")


def test_each_process_is_told_its_place():
    _, *words = local._process_command(make(processes=2), 1, "127.0.0.1:7")
    assert words[:3] == ["-m", "tpullm", "pretrain"]
    assert words[-3:] == ["--hosts.index=1", "--hosts.count=2", "--hosts.coordinator=127.0.0.1:7"]
    assert local._process_command(make(processes=1), 0, "a:1")[-2:] == ["--hosts.index=0", "--hosts.count=1"], (
        "it joins nobody"
    )
    assert local._process_command(make("collect", processes=2), 1, "a:1")[-3:] == [
        "runs/x",
        "--share.index=1",
        "--share.count=2",
    ]


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
    """Of two processes, the second."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local._process_variables(make(processes=2, **config), 1) == own


def test_gpus_of_a_machine_that_names_none_are_counted(tmp_path):
    for number in range(4):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    assert [local._process_variables(make(processes=2), index) for index in (0, 1)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    local.check(make(processes=4))
    with pytest.raises(UserError, match=r"processes: 3 can't share 4 GPU\(s\) evenly"):
        local.check(make(processes=3))


def test_a_mesh_that_does_not_fit_the_devices_of_all_processes_is_refused(monkeypatch):
    """Of processes with CPU devices, and of processes that share GPUs; shares of a stage have no mesh."""
    mesh = ["--mesh.fsdp", "8"]
    local.check(make(processes=4, devices=2, arguments=mesh))
    with pytest.raises(UserError, match=r"does not fit 2 device\(s\).*\(processes: 2, with 1 CPU device\(s\) each\)"):
        local.check(make(processes=2, devices=1, arguments=mesh))
    local.check(make("collect", processes=2, devices=1, arguments=mesh))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(UserError, match=r"does not fit 4 device\(s\).*\(processes: 2, with 2 GPU device\(s\) each\)"):
        local.check(make(processes=2, arguments=mesh))


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Process:
    """A child that ends with a code at a time."""

    def __init__(self, clock, code, at):
        self.clock, self.code, self.at = clock, code, at

    def poll(self):
        return self.code if self.clock.now >= self.at else None


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(local, "time", made := Clock())
    return made


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
def test_the_code_is_that_of_the_first_that_failed_by_itself(clock, ends, code):
    """No other is stopped: it has no `send`."""
    assert local.wait_for_children([Process(clock, *end) for end in ends]) == code
