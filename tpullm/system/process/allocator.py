"""How a process that computes allocates memory: settings of glibc, which reads them before the program starts.

This imports next to nothing: the command is started again with them before all else is imported.
"""

import contextlib
import os
import sys

# Freed memory stays in the process, in huge pages. By default glibc returns large blocks to the system, and every
# operation pays for fresh pages: the quickstart trained at 12,100 tokens/s without this and at 17,500 with it. With one
# arena (the last setting), XLA's threads do so too, whose own arenas can't keep large blocks: at 12 M parameters a step
# took 1.15 s without it (1.53 s after a pause, on a machine that lends its free memory) and 1.09 s with it, at the cost
# of more memory.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 34, "hugetlb": 1, "arena_max": 1}.items()
)
STARTED_AGAIN = "TPULLM_STARTED_AGAIN"


def start_again() -> None:
    """Start the same command again so that glibc reads the settings, unless it has some.

    A process that was started again without them stays as it is: glibc removes them from a privileged Python.
    """
    known = "GLIBC_TUNABLES" in os.environ or STARTED_AGAIN in os.environ
    if sys.platform == "linux" and sys.executable and not known:
        wanted = os.environ | {"GLIBC_TUNABLES": ALLOCATOR, STARTED_AGAIN: "1"}
        with contextlib.suppress(OSError):  # without a second start: slower, same results
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def described() -> str:
    """How this process allocates memory, for the log."""
    found = os.environ.get("GLIBC_TUNABLES")
    if found is None:
        return "gives freed memory back to the system"
    return "keeps freed memory and asks for huge pages" if found == ALLOCATOR else f"as set: GLIBC_TUNABLES={found}"
