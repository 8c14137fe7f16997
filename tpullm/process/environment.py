"""The environment variables of a process that computes. A variable that the user has set is left alone.

They are variables because glibc reads them before the program starts, XLA and JAX when they are imported, and child
processes inherit them.
"""

import contextlib
import importlib.util
import os
import sys

from tpullm.cluster import place
from tpullm.process import compile_cache

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


def prepare() -> None:
    """Set the variables, and start the same command again so that glibc reads them.

    A process that was started again without them stays as it is: glibc removes them from a privileged Python.
    """
    known = "GLIBC_TUNABLES" in os.environ or STARTED_AGAIN in os.environ
    if sys.platform == "linux" and sys.executable and not known:
        wanted = os.environ | {"GLIBC_TUNABLES": ALLOCATOR, STARTED_AGAIN: "1"}
        with contextlib.suppress(OSError):  # without a second start: slower, same results
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
    set_variables()
    compile_cache.maintain()


def set_variables() -> None:
    """Set JAX's variables. If JAX is imported already (in a notebook), set its platform directly.

    Every verb except `launch` calls this before JAX is imported, and so does the Python API.
    """
    wanted = compile_cache.settings() | platforms()
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if "JAX_PLATFORMS" in wanted and (jax := sys.modules.get("jax")) and not jax.config.jax_platforms:
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def platforms() -> dict[str, str]:
    """The platform `cpu` if a compiler is installed (extras `tpu`, `gpu-plan`) without a TPU or GPU; else JAX chooses.

    Otherwise libtpu would look for a TPU, and print five lines on stderr when it finds none; the plugin for GPUs would
    warn that it finds no CUDA.
    """
    installed = [name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name)]  # plugins are for GPUs
    here = place.may_have_tpu(os.environ) or place.may_have_gpu()
    return {"JAX_PLATFORMS": "cpu"} if installed and not here else {}


def allocator() -> str:
    """How this process allocates memory, for the log."""
    found = os.environ.get("GLIBC_TUNABLES")
    if found is None:
        return "gives freed memory back to the system"
    return "keeps freed memory and asks for huge pages" if found == ALLOCATOR else f"as set: GLIBC_TUNABLES={found}"
