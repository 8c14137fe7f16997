"""Several processes of this machine as the hosts of one training."""

import functools
import itertools
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tpullm.launch import job as jobs
from tpullm.launch.child_process import Child
from tpullm.launch.job import TEXT, Job, check_devices
from tpullm.system.cluster import handshake
from tpullm.system.cluster.handshake import free_port
from tpullm.system.errors import TRY_AGAIN, Interrupted, UserError

SECONDS_TO_NOTICE = 10.0  # after a failure: hosts that have joined see at once that one is gone, and exit
SECONDS_TO_END = 15.0  # between SIGTERM and SIGKILL, after another process failed
SECONDS_TO_SAVE = 120.0  # the same, after Ctrl-C
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # the driver of Linux has one folder a GPU
COUNT_FLAG = "--xla_force_host_platform_device_count"


def check(job: Job) -> None:
    """Refuse a job that can't run on this machine; `UserError` names the key."""
    jobs.require(job.config, "local")
    if job.verb in TEXT:
        raise UserError(f"{job.verb}: uses all cores of this machine by itself; run it without `launch local`")
    cards, count = _visible_gpus(), job.config.processes
    if cards and len(cards) % count:
        told = f"can't share {len(cards)} GPU(s) evenly; use a divisor, or JAX_PLATFORMS=cpu"
        raise UserError(f"processes: {count} {told}")
    if cards or job.config.devices:  # else XLA_FLAGS or a TPU may decide: the verb will say
        devices, kind = len(cards) or count * job.config.devices, "GPU" if cards else "CPU"
        check_devices(job, devices, f"processes: {count}, with {devices // count} {kind} device(s) each")


def dry_run(job: Job) -> str:
    """The command of each process and the environment variables that it is given, as YAML."""
    from tpullm.launch import show

    address, numbers = "127.0.0.1:PORT", range(job.config.processes)
    processes = [
        {"environment": _process_variables(job, n), "command": shlex.join(_process_command(job, n, address))}
        for n in numbers
    ]
    head = show.comment("What `tpullm launch local` would start; nothing was.")
    return head + show.as_yaml({"processes": processes})


def run(job: Job, line: Callable[[int, str], None]) -> int:
    """Start all processes, pass on their lines and wait for them; the exit code is that of the first failure.

    Args:
        job: its verb runs in each process.
        line: called from several threads with the number of a process and each of its lines.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all processes had time to save.
    """
    address, shared = f"127.0.0.1:{free_port()}", {handshake.VARIABLE: handshake.make()}
    children = []
    for n in range(job.config.processes):
        environment = os.environ | _process_variables(job, n) | shared
        children.append(Child(_process_command(job, n, address), environment, functools.partial(line, n)))
    try:
        code = wait_for_children(children)
    except KeyboardInterrupt:
        _stop_children(children, SECONDS_TO_SAVE)
        raise Interrupted("stopped all processes; the same command resumes from the last checkpoint") from None
    finally:
        for child in children:
            child.kill()
    return code


def wait_for_children(children: Sequence[Child]) -> int:
    """Wait for all; the exit code. After a failure the others may end by themselves for some seconds, then stop."""
    failed: list[int] = []  # exit codes, in the order in which they came
    left, until = list(children), float("inf")
    while left:
        for child in list(left):
            if (code := child.poll()) is not None:
                left.remove(child)
                failed += [code] * (code != 0)
                until = min(until, time.monotonic() + SECONDS_TO_NOTICE) if code else until
        if time.monotonic() > until:
            _stop_children(left, SECONDS_TO_END)
        time.sleep(0.1)
    # Exit code 75 means that another process is the cause.
    return next((code for code in failed if code != TRY_AGAIN), failed[0] if failed else 0)


def _stop_children(children: Sequence[Child], seconds: float) -> None:
    """Send SIGTERM to all, and after some seconds SIGKILL to those that still run."""
    for child in children:
        child.send(signal.SIGTERM)
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(child.poll() is None for child in children):
        time.sleep(0.1)
    for child in children:
        child.kill()


def _process_command(job: Job, index: int, address: str) -> list[str]:
    """The verb's command line for one process."""
    count = job.config.processes
    place = [f"--hosts.index={index}", f"--hosts.count={count}"]
    place += [f"--hosts.coordinator={address}"] if count > 1 else []
    return [sys.executable, "-m", "tpullm", job.verb, *job.arguments, *place]


def _process_variables(job: Job, index: int) -> dict[str, str]:
    """The environment variables of one process: the job's, and those that choose its devices."""
    own = dict(job.config.environment)
    if cards := _visible_gpus():
        share = len(cards) // job.config.processes
        return own | {"CUDA_VISIBLE_DEVICES": ",".join(cards[index * share : (index + 1) * share])}
    if job.config.devices:
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(COUNT_FLAG)]
        own["XLA_FLAGS"] = " ".join([*flags, f"{COUNT_FLAG}={job.config.devices}"])
    return own | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or "cpu"}


def _visible_gpus() -> list[str]:
    """The NVIDIA GPUs that the processes share, by their names in CUDA_VISIBLE_DEVICES.

    CUDA ignores the list from the first name that is not a GPU: `-1` hides all (CUDA C++ Programming Guide).
    """
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = map(str.strip, os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        return list(itertools.takewhile(lambda name: re.match(r"\d|GPU-|MIG-", name), names))
    return [str(index) for index, _ in enumerate(NVIDIA_GPUS.glob("*"))]
