"""Fakes of Google's services for the tests of launches, and jobs for them."""

import contextlib
import functools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.launch.fake_batch import FakeBatch
from tests.launch.fake_tpu import FakeTpu
from tpullm.launch import job, watch
from tpullm.launch.job import Job, LaunchConfig

QUICK = watch.Pace(poll=0.1, first_wait=0.1, longest_wait=1.0)
CLOUD = {"project": "my-project", "zone": "us-central1-a"}
SETTINGS = {"project": "my-project", "zone": "us-west4-a", "accelerator": "v5litepod-16"}


def make_job(run: str | Path, *command: str, **settings) -> Job:
    """A job for TPU machines; its run directory may be local, unlike that of a real launch."""
    words = list(command) or ["pretrain", "--config", str(TINY)]
    return job.make("tpu-vm", LaunchConfig(**SETTINGS | settings), [*words, "--run", str(run)])


@pytest.fixture
def start_tpu(tmp_path, address) -> Iterator[Callable[..., FakeTpu]]:
    with contextlib.ExitStack() as fakes:

        def start(environment: dict[str, str] | None = None) -> FakeTpu:
            fake = fakes.enter_context(FakeTpu(tmp_path / "machines", environment))
            address("TPU", fake)
            return fake

        yield start


@pytest.fixture
def tpu(start_tpu) -> FakeTpu:
    return start_tpu()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Shorten the waits between observations. The wait for a report stays long: this machine may be busy."""
    quick = functools.partial(watch.Pace, 0.05, 0.05, 0.2, 300.0)
    monkeypatch.setattr(watch, "Pace", quick)


def job_of(target: str, verb: str, run="gs://my-bucket/tiny", arguments=(), **config) -> Job:
    command = [verb, "--config", str(TINY), "--run", run, *arguments]
    return job.make(target, LaunchConfig(**CLOUD | config), command)


@pytest.fixture
def address(monkeypatch):
    """Points an API's client to a fake: `address("BATCH", fake)`."""

    def set_address(service, fake):
        monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service}", fake.endpoint)

    return set_address


@pytest.fixture
def batch(address, monkeypatch) -> Iterator[FakeBatch]:
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
    with FakeBatch() as service:
        address("BATCH", service)
        yield service


def nvidia_smi(folder: Path, lines: list[str], code: int = 0) -> None:
    """Put a program of that name into a folder, which finds the GPUs that the lines name."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo {shlex.quote(line)}\n" for line in lines) + f"exit {code}\n")
    program.chmod(0o755)
