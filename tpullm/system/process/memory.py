"""The memory of this process and machine: how much is free, and giving back what was freed and can't be used again.

The allocator keeps all that is freed (`allocator.py`), since a step needs the same blocks again. But compiling
leaves holes of many sizes, and in the first steps the blocks of a program find their places, so what they left stays
unused. Of tuning 120 M parameters it was 3.7 GiB before and 2.2 after, at the same speed.

Requests that have ended can be held by cycles of objects. Python looks for these among all objects of JAX too, so it
does that seldom.
"""

import contextlib
import ctypes
import functools
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tpullm.system.process.allocator import ALLOCATOR

# The files of a cgroup: its limit, what it uses, and in `memory.stat` what of that are files that can be read again.
_SECOND = ("memory.max", "memory.current", "inactive_file")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(root: Path = Path("/")) -> int | None:
    """The bytes that are free, or soon will be if they are asked for; None where nobody says.

    Args:
        root: above `proc` and `sys`.
    """
    lines = _lines_of_cgroup_file(root / "proc/meminfo")
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_left_in_cgroups(root)], default=None)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What the limit of each cgroup that this process is in leaves."""
    for line in _lines_of_cgroup_file(root / "proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            folder, names = ("sys/fs/cgroup/memory", _FIRST) if controllers else ("sys/fs/cgroup", _SECOND)
            # In a container the path may be that outside of it; then the folders that are missing have no limit.
            for path in (PurePosixPath(own), *PurePosixPath(own).parents):
                group = root / folder / path.relative_to("/")
                limits, uses, parts = (_lines_of_cgroup_file(group / name) for name in (*names[:2], "memory.stat"))
                if limits and uses and limits[0].isdigit():  # otherwise it is `max`
                    again = [int(line.split()[1]) for line in parts if line.split()[0] == names[2]]
                    yield int(limits[0]) - int(uses[0]) + sum(again)


def _lines_of_cgroup_file(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8").splitlines()
    return []


LONG = 1.0  # seconds; a shorter compilation leaves little
STEPS = 3  # until the blocks of a program have their places
COMPILED = "/jax/core/compile/backend_compile_duration"

_left = STEPS
_last = -float("inf")  # when cycles were freed by `free_cycles_every`


@functools.cache  # JAX keeps each listener
def watch() -> None:
    """From now on, do it after each long compilation and in the steps that follow."""
    import jax

    jax.monitoring.register_event_duration_secs_listener(_note_compilation)


def settle() -> None:
    """Do it if this is one of the first steps, or one of the first after a compilation."""
    global _left
    if _left:
        _left -= 1
        give_back()


def all_stays() -> None:
    """What Python holds now stays to the end: it is no longer searched for cycles, which takes 0.1 s with JAX."""
    gc.collect()
    gc.freeze()


def free_cycles_every(seconds: float) -> None:
    """Free what only cycles of objects hold, unless it was done here less than so many seconds ago."""
    global _last
    if time.monotonic() >= _last + seconds:
        gc.collect()
        _last = time.monotonic()


def give_back() -> None:
    """Give back all pages that are free, also those between others. It takes about 0.02 s; only glibc knows how.

    With glibc's own settings little is kept, so nothing is done.
    """
    if os.environ.get("GLIBC_TUNABLES") == ALLOCATOR:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def _note_compilation(event: str, seconds: float, **_: object) -> None:
    global _left
    if event == COMPILED and seconds >= LONG:
        give_back()
        _left = STEPS
