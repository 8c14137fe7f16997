"""Several processes of this machine as one training, or as shares of one stage: what several hosts do, at home."""

import functools
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tpullm.errors import TRY_AGAIN, Interrupted, UserError
from tpullm.launchers import settings
from tpullm.launchers.child import Child
from tpullm.launchers.job import JOINING, Job

SECONDS_TO_NOTICE = 10.0  # joined processes see at once that one is gone, and say so themselves
SECONDS_TO_END = 15.0  # of a process that was told to after another one failed
SECONDS_TO_SAVE = 120.0  # of all, after Ctrl-C
COUNT_FLAG = "--xla_force_host_platform_device_count"


def check(job: Job) -> None:
    """Refuse what can't run here; `UserError` names the key."""
    settings.require(job.config, "local")
    cards = _cards()
    if cards and len(cards) % job.config.processes:
        raise UserError(
            f"processes: {job.config.processes} can't share {len(cards)} GPU(s) evenly; use a divisor, or "
            "JAX_PLATFORMS=cpu"
        )


def dry_run(job: Job) -> str:
    """The commands that would be started, with the variables that each is given, as YAML."""
    from tpullm.launchers import show

    processes = [
        {"environment": _own_variables(job, index), "command": shlex.join(_command(job, index, "127.0.0.1:PORT"))}
        for index in range(job.config.processes)
    ]
    return "# What `tpullm launch local` would start; nothing was.\n" + show.as_yaml({"processes": processes})


def run(job: Job, line: Callable[[int, str], None]) -> int:
    """Start all, pass on their lines, and end when they have; the exit code is that of the first failure.

    Args:
        line: called with a process's number and each of its lines, from several threads.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all have saved what they could.
    """
    address = f"127.0.0.1:{_free_port()}"
    children = [
        Child(_command(job, index, address), os.environ | _own_variables(job, index), functools.partial(line, index))
        for index in range(job.config.processes)
    ]
    try:
        code = wait(children)
    except KeyboardInterrupt:
        _stop(children, SECONDS_TO_SAVE)
        raise Interrupted("stopped all processes; the same command goes on from the last save") from None
    finally:
        for child in children:
            child.kill()
    return code


def wait(children: Sequence[Child]) -> int:
    """Until all have ended; after a failure the others have some seconds to end by themselves, and are then stopped."""
    failed: list[int] = []  # exit codes, in the order in which they were seen
    left, until = list(children), float("inf")
    while left:
        for child in list(left):
            if (code := child.poll()) is not None:
                left.remove(child)
                failed += [code] * (code != 0)
                until = min(until, time.monotonic() + SECONDS_TO_NOTICE) if code else until
        if time.monotonic() > until:
            _stop(left, SECONDS_TO_END)
        time.sleep(0.1)
    # 75 says that another process is the cause.
    return next((code for code in failed if code != TRY_AGAIN), failed[0] if failed else 0)


def _stop(children: Sequence[Child], seconds: float) -> None:
    """SIGTERM to all, and after some time SIGKILL to those that are still there."""
    for child in children:
        child.send(signal.SIGTERM)
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(child.poll() is None for child in children):
        time.sleep(0.1)
    for child in children:
        child.kill()


def _command(job: Job, index: int, address: str) -> list[str]:
    """The verb's command line for one process."""
    count = job.config.processes
    kind = "hosts" if job.verb in JOINING else "share"
    place = [f"--{kind}.index={index}", f"--{kind}.count={count}"]
    place += [f"--hosts.coordinator={address}"] if kind == "hosts" and count > 1 else []
    return [sys.executable, "-m", "tpullm", job.verb, *job.arguments, *place]


def _own_variables(job: Job, index: int) -> dict[str, str]:
    """The variables that a process is given: which devices are its own."""
    own = dict(job.config.environment)
    platform = os.environ.get("JAX_PLATFORMS", "")
    if cards := _cards():
        share = len(cards) // job.config.processes
        own["CUDA_VISIBLE_DEVICES"] = ",".join(cards[index * share : (index + 1) * share])
        return own
    if job.config.devices:
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(COUNT_FLAG)]
        own["XLA_FLAGS"] = " ".join([*flags, f"{COUNT_FLAG}={job.config.devices}"])
    return own | {"JAX_PLATFORMS": platform or "cpu"}


def _cards() -> list[str]:
    """The GPUs of NVIDIA that the processes share, by the names that CUDA has for them."""
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [card for card in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if card]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
