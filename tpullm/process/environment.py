"""What a process that computes is started with: environment variables, all of them here. What the user has set stands.

They are variables and not settings in the program because glibc reads its own before the program begins, XLA and JAX
theirs when they are imported, and processes that are started from this one inherit them.
"""

import contextlib
import importlib.util
import os
import sys

from tpullm.cluster import place
from tpullm.process import compile_cache

# Freed memory stays in the process, in huge pages. By default glibc gives large blocks back to the system, and every
# operation pays for fresh pages: the quickstart trained at 12,100 tokens/s without this and at 17,500 with it. The last
# setting makes that true of XLA's threads too, whose own arenas can't keep large blocks: 12 M parameters, 1.15 s a step
# without it, and 1.53 after a pause on a machine that lends its free memory; 1.09 with it, for more memory held.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 34, "hugetlb": 1, "arena_max": 1}.items()
)
STARTED_AGAIN = "TPULLM_STARTED_AGAIN"


def prepare() -> None:
    """Have this process compute under the settings of this file; glibc's need the same command started once more.

    A process that has come back without them (glibc takes them from a Python with extra privileges) stays as it is.
    """
    known = "GLIBC_TUNABLES" in os.environ or STARTED_AGAIN in os.environ
    if sys.platform == "linux" and sys.executable and not known:
        wanted = os.environ | {"GLIBC_TUNABLES": ALLOCATOR, STARTED_AGAIN: "1"}
        with contextlib.suppress(OSError):  # no second start: slower, and otherwise the same
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
    settle()
    compile_cache.mend()


def settle() -> None:
    """Set JAX's variables; a JAX that is imported already (in a notebook) has read them and is told the platform.

    Every verb but `launch` does this before JAX is imported, and so does the Python door.
    """
    wanted = compile_cache.settings() | platforms()
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if "JAX_PLATFORMS" in wanted and (jax := sys.modules.get("jax")) and not jax.config.jax_platforms:
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def platforms() -> dict[str, str]:
    """JAX's own choice, but where the TPU compiler is installed (extra `tpu`) and nothing is here but a CPU.

    There JAX would have it look for a TPU, which it does not find in five lines on stderr.
    """
    installed = [name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name)]  # the latter are of GPUs
    return {"JAX_PLATFORMS": "cpu"} if installed == ["libtpu"] and not place.may_have_tpu(os.environ) else {}


def allocator() -> str:
    """How this process allocates memory, for the log line of a start."""
    found = os.environ.get("GLIBC_TUNABLES")
    if found is None:
        return "gives freed memory back to the system"
    return "keeps freed memory and asks for huge pages" if found == ALLOCATOR else f"as set: GLIBC_TUNABLES={found}"
