"""Takes from a process what a program that nobody trusts does not need. docs/en/threat_model.md says what holds."""

import contextlib
import ctypes
import os
import signal
import sys

from tpullm.process.child import limit
from tpullm.process.system_calls import permit_only_computing

NOBODY = 65_534
_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000  # CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET of linux/sched.h
_DIE_WITH_PARENT, _DUMPABLE = 1, 4  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE of linux/prctl.h
_MOST_DESCRIPTORS = 1 << 16
_REFUSED = ("os", "socket", "subprocess", "ctypes", "shutil", "tempfile", "pty", "fcntl", "resource", "mmap", "signal")
_READS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def leave_the_machine(own: str) -> None:
    """Give up root, the network, and the sight of other processes, for as much as the kernel permits.

    Afterwards this is the first process of its namespace, and none of its user may read its memory.

    Args:
        own: the package whose files need not be read again.
    """
    _become_nobody(own)
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        library = ctypes.CDLL(None)
        if library.unshare(_NAMESPACES) == 0:
            if child := os.fork():
                os.waitpid(child, 0)
                os._exit(0)
            library.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        library.prctl(_DUMPABLE, 0, 0, 0, 0)


def _become_nobody(own: str) -> None:
    """Give up root, unless `nobody` can't read Python's library, or a package that was imported beside `own`."""
    modules = [
        module for name, module in sys.modules.items() if name.split(".")[0] not in (own, __name__.split(".")[0])
    ]
    needed = {path for module in modules if os.path.exists(path := getattr(module, "__file__", None) or "")}
    with contextlib.suppress(OSError):
        if os.getuid() == 0:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            readable = all(os.access(path, os.R_OK, effective_ids=True) for path in needed)
            os.seteuid(0)
            os.setegid(0)
            if readable:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)


def confine(kept: set[int], seconds: int, memory_bytes: int) -> None:
    """Leave this process the descriptors `kept`, 0, 1 and 2, some time and memory, and what computing needs."""
    os.setsid()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    edges = [2, *sorted(kept), _MOST_DESCRIPTORS]
    for before, after in zip(edges, edges[1:], strict=False):
        os.closerange(before + 1, after)
    os.chdir("/")
    limit("RLIMIT_AS", _reserved_bytes() + memory_bytes, for_good=True)
    limit("RLIMIT_CPU", seconds + 1, for_good=True)  # for what does not end at the signal of the next limit
    limit("RLIMIT_CPU", seconds)
    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC"):
        limit(name, 0, for_good=True)
    if not permit_only_computing():
        sys.addaudithook(_refuse)


def _reserved_bytes() -> int:
    """The address space that this process has."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 1 << 30


def _refuse(event: str, arguments: tuple) -> None:
    """The audit hook, where the kernel has no filter: what a function has no need of is an error in it.

    It stops libraries that use `ctypes` too, such as numpy.
    """
    opens_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if opens_to_write or event.split(".")[0] in _REFUSED and event not in _READS:
        raise PermissionError(f"{event} is not permitted here")
