"""The peak FLOP/s of a device: published for TPUs and GPUs, measured here for others, and never while disturbed.

A processor that other programs keep busy seems slower than it is, and an MFU by such a peak was above 100 %. So each
trial of a measurement also asks how long this process had to wait for a core, and only trials that hardly waited count.
Two cores of a Xeon with AMX multiplied at 1,600 GFLOP/s when idle. With five other programs on them all trials of a
minute went from 50 to 1,536, and those that waited less than 5 % of their time from 1,172 to 1,536.
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
from tpullm.log import warn

TRIALS = 5  # undisturbed ones, of which the fastest counts
SECONDS = 2.0  # that a disturbed measurement goes on
PAUSE_SECONDS = 0.01  # after a disturbed trial: who has slept is given a core sooner
MOST_WAITING = 0.05  # of the processor time that an undisturbed trial wants


@dataclass(frozen=True)
class Trial:
    """One run of what is measured.

    Args:
        seconds: that it took.
        waiting: the share of the processor time it wanted that it was not given.
    """

    seconds: float
    waiting: float


@dataclass(frozen=True)
class Fastest:
    """What trials came to.

    Args:
        seconds: of the fastest trial.
        disturbed: too few trials had the processor for themselves, so `seconds` is too many.
    """

    seconds: float
    disturbed: bool


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device; `disturbed` if the device was busy with something else, so that `flops` is too low."""

    flops: float
    disturbed: bool = False


@functools.lru_cache(maxsize=4)
def peak(dtype: jnp.dtype) -> Peak:
    """The peak of one device here. A process measures once, and says so if it could not."""
    kind = jax.local_devices()[0].device_kind
    if published := of_kind(kind).peak_flops:
        return Peak(published)
    size = 1536
    x, square = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    found = fastest(lambda: square(x, x).block_until_ready())
    disturbed = found.disturbed and jax.default_backend() == "cpu"  # an accelerator does not share itself like that
    if disturbed:
        warn(
            "other programs keep this processor busy, so its peak can't be measured: "
            "MFU is not shown, and predicted times are too long"
        )
    return Peak(2 * size**3 / found.seconds, disturbed)


def fastest(work: Callable[[], object]) -> Fastest:
    """The fastest of `TRIALS` undisturbed runs of `work`, after one to warm up; bounded by `SECONDS`."""
    work()
    return choose(_trials(work))


def choose(trials: Iterable[Trial]) -> Fastest:
    """The fastest of the first undisturbed trials; if there are too few, of all of them."""
    seen: list[float] = []
    calm: list[float] = []
    for trial in trials:
        seen.append(trial.seconds)
        calm += [trial.seconds] * (trial.waiting <= MOST_WAITING)
        if len(calm) == TRIALS:
            return Fastest(min(calm), disturbed=False)
    return Fastest(min(seen), disturbed=True)


def _trials(work: Callable[[], object]) -> Iterator[Trial]:
    """Trials until the time is over, and `TRIALS` at least."""
    until, done = time.monotonic() + SECONDS, 0
    while done < TRIALS or time.monotonic() < until:
        waited, used, start = _waited(), time.process_time(), time.perf_counter()
        work()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        trial = Trial(seconds, share_waited(seconds, used, None if waited is None else _waited() - waited))
        yield trial
        done += 1
        if trial.waiting > MOST_WAITING:
            time.sleep(PAUSE_SECONDS)


def share_waited(seconds: float, used: float, waited: float | None) -> float:
    """The share of the wanted processor time that was not given.

    Args:
        seconds: of the trial.
        used: processor seconds of all threads in it.
        waited: seconds that threads were ready and had no core; None if the system doesn't tell. All cores count as
            wanted then.
    """
    if waited is None:
        return max(0.0, 1 - used / (seconds * (os.cpu_count() or 1)))
    return max(0.0, waited) / (max(0.0, waited) + used) if used else 0.0


def _waited() -> float | None:
    """Seconds that threads of this process have been ready to run and had no core, and that a hypervisor took away.

    None where the system doesn't tell: it is not Linux, or one without the accounts of its scheduler.
    """
    if not Path("/proc/self/schedstat").exists():
        return None
    stolen = int(Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[8])
    return sum(map(_delay, Path("/proc/self/task").iterdir())) / 1e9 + stolen / os.sysconf("SC_CLK_TCK")


def _delay(task: Path) -> int:
    """Nanoseconds that a thread has waited on a core's queue (Documentation/scheduler/sched-stats.rst)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        return int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return 0
