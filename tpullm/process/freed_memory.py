"""Gives memory back to the system that was freed and that later allocations can't use.

The allocator keeps all that is freed (`environment.ALLOCATOR`), since a step needs the same blocks again. But compiling
leaves holes of many sizes, and in the first steps the blocks of a program find their places, so what they left stays
unused. Of tuning 120 M parameters it was 3.7 GiB before and 2.2 after, at the same speed (`benchmarks/LOG.md`).
"""

import contextlib
import ctypes
import functools
import os

from tpullm.process.environment import ALLOCATOR

LONG = 1.0  # seconds; a shorter compilation leaves little
STEPS = 3  # until the blocks of a program have their places
COMPILED = "/jax/core/compile/backend_compile_duration"

_left = STEPS


@functools.cache  # JAX keeps each listener
def watch() -> None:
    """From now on, do it after each long compilation and in the steps that follow."""
    import jax

    jax.monitoring.register_event_duration_secs_listener(_compiled)


def settle() -> None:
    """Do it if this is one of the first steps, or one of the first after a compilation."""
    global _left
    if _left:
        _left -= 1
        give_back()


def give_back() -> None:
    """Give back all pages that are free, also those between others. It takes about 0.02 s; only glibc knows how.

    With glibc's own settings little is kept, so nothing is done.
    """
    if os.environ.get("GLIBC_TUNABLES") == ALLOCATOR:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def _compiled(event: str, seconds: float, **_: object) -> None:
    global _left
    if event == COMPILED and seconds >= LONG:
        give_back()
        _left = STEPS
