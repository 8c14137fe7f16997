"""Compiled programs are kept in the user's cache folder, so that a command that was run before does not compile again.

JAX writes and reads them, and finds them by the program, the versions and XLA's flags. It leaves out the machine: a
program that was compiled for one processor can stop another (SIGILL), and one for fewer cores is slow (the quickstart's
step took 0.57 s instead of 0.48 s on two cores as the program of one). Since home folders are shared between machines,
each kind of machine has a folder of its own.
"""

import contextlib
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from tpullm.log import warn
from tpullm.storage.cache import cache_folder

FOLDER = "JAX_COMPILATION_CACHE_DIR"
LEAST_SECONDS = 0.1  # with what compiles faster kept too, a start was not measurably quicker
MOST_BYTES = 1 << 30
_MACHINE = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer", "CPU part")
_FAILED = re.compile("Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)


def settings() -> dict[str, str]:
    """The variables that have JAX keep programs; none if there is no folder that can be written."""
    folder = cache_folder("xla") / machine()
    if not folder.is_absolute():  # a user without a home
        return {}
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it is run: nobody else may write there
        if os.access(folder, os.W_OK):
            return {FOLDER: str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(LEAST_SECONDS)}
    return {}


def described() -> str:
    """Where this process keeps programs, for the log line of a start."""
    folder = os.environ.get(FOLDER)
    return f"kept in {folder}" if folder else "not kept (XDG_CACHE_HOME is a folder that can't be written)"


def machine() -> str:
    """A name for this kind of machine: processor, what it can do, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = f"{sys.platform} {os.uname().machine} {cores} {_processor()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _processor() -> str:
    """The lines about the first processor that tell its kind; empty where the system has no such file."""
    lines = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                break
            if line.split(":")[0].strip() in _MACHINE:
                lines.append(line)
    return "".join(lines)


def mend() -> None:
    """Keep our folder within `MOST_BYTES`, and rid it of broken entries when JAX comes upon one.

    JAX neither writes an entry in one go nor replaces one: what a full disk or a kill left half-written would cost a
    warning and a compilation in every command. The user hears of the first in one line.
    """
    home, folder = cache_folder("xla"), Path(os.environ.get(FOLDER, ""))
    if not folder.is_relative_to(home):
        return
    shrink(home, MOST_BYTES)
    show, told = warnings.showwarning, []

    def heard(message, *arguments, **named):
        failed = _FAILED.match(str(message))
        if not failed:
            return show(message, *arguments, **named)
        action, name, reason = failed.groups()
        for path in folder.glob(f"{name}-*"):
            path.unlink(missing_ok=True)
        if not told:
            what = "can't be read and is made again" if action == "reading" else "can't be kept"
            warn(f"{folder}: a compiled program {what} ({' '.join(reason.split())})")
        told.append(name)

    warnings.showwarning = heard


def shrink(home: Path, most_bytes: int) -> None:
    """Remove what was longest not used until `most_bytes` are left."""
    for _, size, path in sorted(_entries(home), reverse=True):
        most_bytes -= size
        if most_bytes < 0:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _entries(home: Path) -> Iterator[tuple[float, int, str]]:
    """When each entry was last used (a day late, as file systems count), its bytes, its path."""
    for folder, _, names in os.walk(home):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(folder, name))
                yield max(status.st_atime, status.st_mtime), status.st_size, os.path.join(folder, name)
