"""The peak FLOP/s of a device: published for TPUs and GPUs, measured for other devices.

A processor that other programs keep busy seems slower than it is. An MFU based on such a measurement exceeded 100 %.
Each trial therefore also measures how long this process waited for a core, and only trials that hardly waited count.
Two idle cores of a Xeon with AMX ran matmuls at 1,600 GFLOP/s. With five other programs on them, the trials of one
minute ranged from 50 to 1,536, and the trials that waited less than 5 % of their time from 1,172 to 1,536.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.system.log import warn

TRIALS = 5  # undisturbed trials; the fastest one counts
SECONDS = 1.0  # after which a disturbed measurement ends
PAUSE_SECONDS = 0.01  # after a disturbed trial: the scheduler prefers threads that have slept
MOST_WAITING = 0.05  # largest share of waiting in an undisturbed trial


@dataclass(frozen=True)
class Trial:
    """One run of the measured work.

    Args:
        seconds: wall time.
        waiting: share of the processor time that the threads wanted and did not get.
    """

    seconds: float
    waiting: float


@dataclass(frozen=True)
class Fastest:
    """The fastest of several trials.

    Args:
        seconds: wall time.
        disturbed: other programs used the processor in too many trials, so `seconds` is too long.
    """

    seconds: float
    disturbed: bool


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device; `disturbed` if other programs used the device, so that `flops` is too low."""

    flops: float
    disturbed: bool = False


@functools.lru_cache(maxsize=4)
def peak(dtype: jnp.dtype) -> Peak:
    """The peak of one local device. A process measures once, and warns if the measurement was disturbed."""
    kind = jax.local_devices()[0].device_kind
    if published := of_kind(kind).peak_flops:
        return Peak(published)
    size = 1536
    x, square = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    found = fastest_run(lambda: square(x, x).block_until_ready())
    disturbed = found.disturbed and jax.default_backend() == "cpu"  # programs do not share an accelerator like that
    if disturbed:
        warn(
            "other programs keep this processor busy, so its peak can't be measured: "
            "MFU is not shown, and predicted times are too long"
        )
    return Peak(2 * size**3 / found.seconds, disturbed)


def fastest_run(work: Callable[[], object]) -> Fastest:
    """The fastest of `TRIALS` undisturbed runs of `work`, after one run to warm up; takes at most about `SECONDS`."""
    work()
    return fastest_trial(_timed_trials(work))


def fastest_trial(trials: Iterable[Trial]) -> Fastest:
    """The fastest of the first `TRIALS` undisturbed trials; if there are fewer, the fastest of all trials."""
    seen: list[float] = []
    calm: list[float] = []
    for trial in trials:
        seen.append(trial.seconds)
        calm += [trial.seconds] * (trial.waiting <= MOST_WAITING)
        if len(calm) == TRIALS:
            return Fastest(min(calm), disturbed=False)
    return Fastest(min(seen), disturbed=True)


def _timed_trials(work: Callable[[], object]) -> Iterator[Trial]:
    """Trials for `SECONDS`, and at least `TRIALS` of them."""
    until, done = time.monotonic() + SECONDS, 0
    while done < TRIALS or time.monotonic() < until:
        waited, used, start = _seconds_without_core(), time.process_time(), time.perf_counter()
        work()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        waiting = share_waited(seconds, used, None if waited is None else _seconds_without_core() - waited)
        yield Trial(seconds, waiting)
        done += 1
        if waiting > MOST_WAITING:
            time.sleep(PAUSE_SECONDS)


def share_waited(seconds: float, used: float, waited: float | None) -> float:
    """The share of the processor time that threads wanted and did not get.

    Args:
        seconds: wall time of the trial.
        used: processor seconds of all threads in the trial.
        waited: seconds that threads were ready and had no core. None if the system does not report them: then the
            threads are taken to want all cores.
    """
    if waited is None:
        return max(0.0, 1 - used / (seconds * (os.cpu_count() or 1)))
    return max(0.0, waited) / (max(0.0, waited) + used) if used else 0.0


def _seconds_without_core() -> float | None:
    """Seconds that threads of this process were ready and had no core, plus those that a hypervisor took away.

    None where the system does not report them: it is not Linux, or its kernel has no scheduler statistics.
    """
    if not Path("/proc/self/schedstat").exists():
        return None
    stolen, delays = int(Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[8]), 0
    for task in Path("/proc/self/task").iterdir():  # nanoseconds (Documentation/scheduler/sched-stats.rst)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            delays += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return delays / 1e9 + stolen / os.sysconf("SC_CLK_TCK")
