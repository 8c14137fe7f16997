"""What a process that computes is started with: environment variables, its allocator, JAX's compilation cache.

They are variables because glibc reads them before the program starts (`allocator.py`), XLA and JAX when they are
imported, and child processes inherit them. A variable that the user has set is left alone.

The cache is in the user's cache folder: a command that was run before does not compile again. JAX's key has the
program, the versions and XLA's flags, but not the machine. A program compiled for one processor can crash on another
(SIGILL), and one compiled for fewer cores is slow: on two cores, the quickstart's step took 0.57 s with the program of
one core instead of 0.48 s. Machines may share a home folder, so each kind of machine has its own.

What is kept is executed. A folder that another user may have written is not used: a warning says so, and programs are
compiled as if there were no cache, since that costs minutes and a stop would cost the training.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import warnings
from itertools import takewhile
from pathlib import Path

from tpullm.system.cluster import place
from tpullm.system.log import warn
from tpullm.system.process import allocator, cores
from tpullm.system.storage import cache_folder, make_private, shrink

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 1 << 30
_MACHINE = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer", "CPU part")
_FAILED = re.compile("Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)


def prepare() -> None:
    """Set the variables, glibc's by a second start of the same command."""
    allocator.start_again()
    set_variables()
    maintain()


def set_variables() -> None:
    """Set JAX's variables. If JAX is imported already (in a notebook), set its platform directly.

    Every verb except `launch` calls this before JAX is imported, and so does the Python API.
    """
    wanted = settings() | platforms()
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if "JAX_PLATFORMS" in wanted and (jax := sys.modules.get("jax")) and not jax.config.jax_platforms:
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def platforms() -> dict[str, str]:
    """The platform `cpu` if a compiler is installed (extras `tpu`, `cuda`) without a TPU or GPU; else JAX chooses.

    Otherwise libtpu would look for a TPU, and print five lines on stderr when it finds none; the plugin for GPUs would
    warn that it finds no CUDA.
    """
    installed = [name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name)]  # plugins are for GPUs
    here = place.may_have_tpu(os.environ) or place.may_have_gpu()
    return {"JAX_PLATFORMS": "cpu"} if installed and not here else {}


def settings() -> dict[str, str]:
    """The variables that turn on the cache; none without a folder that this user alone can write."""
    folder = cache_folder("xla") / machine()
    if not folder.is_absolute():  # a user without a home
        return {}
    with contextlib.suppress(OSError):
        if why := make_private(folder):
            if FOLDER not in os.environ:  # else it is not needed
                warn(f"{why}: compiled programs are not kept there; set XDG_CACHE_HOME to a folder of your own")
        elif os.access(folder, os.W_OK):
            return {FOLDER: str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # small ones too
    return {}


def described() -> str:
    """Where this process keeps compiled programs, for the log."""
    folder = os.environ.get(FOLDER)
    return f"kept in {folder}" if folder else "not kept (XDG_CACHE_HOME is a folder that can't be used)"


def machine() -> str:
    """A hash of the kind of machine: processor, instruction sets, and the number of cores this process may use."""
    facts = f"{sys.platform} {os.uname().machine} {cores()} {_processor_description()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _processor_description() -> str:
    """The lines of /proc/cpuinfo that describe the first processor; empty where there is no such file."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return "".join(line for line in takewhile(str.strip, file) if line.split(":")[0].strip() in _MACHINE)
    return ""


def maintain() -> None:
    """Keep the cache within `MOST_BYTES`, and from now on remove each broken entry that JAX warns about.

    JAX does not write entries atomically and does not replace one: an entry left half-written by a full disk or a kill
    would cost a warning and a compilation in every command. The first one is logged in one line.
    """
    home, folder = cache_folder("xla"), Path(os.environ.get(FOLDER, ""))
    if not folder.is_relative_to(home):
        return
    shrink(home, MOST_BYTES)
    show, told = warnings.showwarning, []

    def remove_or_show(message, *arguments, **named):
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

    warnings.showwarning = remove_or_show
