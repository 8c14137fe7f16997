"""Runs functions of ours on what a model wrote, such as a program: each call in a process that can do little else.

A child on each core waits for calls, and forks for each. The fork calls the function, which reports values (JSON) as it
goes; the last one before its end counts, however it ends. What holds it, and what does not, is in
docs/en/threat_model.md; here is how:

- Limits that can't be raised: processor time, memory, no bytes in files, no further processes or threads.
- Namespaces of the kernel, if it permits them: no network, and no other process is in sight.
- Started by root, the child becomes `nobody`, if `nobody` may read what a call may import.
- An audit hook of Python refuses network, processes, signals, and changes of files. It holds where the kernel does
  not, against programs that are wrong, but not against those that know the interpreter well.

The child has no threads, so its forks are safe.
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tpullm.errors import UserError
from tpullm.process.child import Child, Ended, Pipes, limit

CLOCK_FACTOR = 5  # a call may take as many times its processor time by the clock: for what sleeps
MOST_REPORT_BYTES = 1 << 20
START_SECONDS = 120  # of a child, with what it imports
NOBODY = 65_534
_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000  # CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET of linux/sched.h
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_REFUSED = ("os", "socket", "subprocess", "ctypes", "shutil", "tempfile", "pty", "fcntl", "resource", "mmap", "signal")
_READS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Isolated:
    """Calls of one function, on all cores.

    Args:
        function: `module:name`. Its first argument is `report(value)`; a value is JSON.
        seconds: of the processor for one call.
        memory_bytes: for one call, beyond what Python and the module have.
    """

    def __init__(self, function: str, seconds: int, memory_bytes: int):
        self._clock_seconds = seconds * CLOCK_FACTOR
        self._order = [function, seconds, self._clock_seconds, memory_bytes]
        self._children: list[Child] = []
        self._waiting: Iterator[str] = iter(())  # the calls that no thread has begun

    def map(self, calls: Sequence[list]) -> list[Any]:
        """The last report of each call (its arguments are JSON) in their order; None of a call that reported nothing.

        Equal calls are made once: many answers to one prompt are the same, and a call costs 10 ms.
        `UserError` if no process can be started here.
        """
        keys = [json.dumps(call, ensure_ascii=False) for call in calls]
        distinct = dict(zip(keys, calls, strict=True))
        while len(self._children) < min(cores(), len(distinct)):
            self._children.append(Child("tpullm.process.isolated:serve"))
        found: dict[str, Any] = {}
        self._waiting = iter(distinct)

        def work(child: Child) -> None:
            while (key := next(self._waiting, None)) is not None:
                found[key] = self._call(child, distinct[key])

        with ThreadPoolExecutor(max(1, len(self._children))) as threads:
            try:
                for done in [threads.submit(work, child) for child in self._children]:
                    done.result()
            except BaseException:  # Ctrl-C, or a child that can't start
                self.close()
                raise
        return [found.get(key) for key in keys]

    def _call(self, child: Child, arguments: list) -> Any:
        try:
            kind, value = child.ask([*self._order, *arguments], self._clock_seconds + START_SECONDS)
        except Ended:  # a call that ended more than itself; if no child starts at all, the next request says so
            self._start(child)
            return None
        if kind == "failed":
            raise UserError(f"no process can be started for what a model wrote ({value}); free memory or processes")
        return value

    def _start(self, child: Child) -> None:
        """Ask for a call that does nothing."""
        try:
            child.ask(["tpullm.process.isolated:nothing", *self._order[1:]], self._clock_seconds + START_SECONDS)
        except Ended as end:
            raise UserError(
                f"the process for what a model wrote ends at its start (exit code {end.code}); "
                f"try `{sys.executable} -I -c 'import tpullm.process.isolated'`"
            ) from None

    def close(self) -> None:
        """End the children, and begin no further call."""
        self._waiting = iter(())
        for child in self._children:
            child.close()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nothing(report: Callable) -> None:
    """The call of `Isolated._start`."""
    report(True)


def serve() -> None:
    """Answer calls until the pipe is closed; what a child runs."""
    pipes, alone = Pipes(), False
    for function, seconds, clock_seconds, memory_bytes, *arguments in pipes.requests():
        module, name = function.split(":")
        work = getattr(importlib.import_module(module), name)  # before `nobody`, who may not read all files
        if not alone:
            _become_nobody(module.split(".")[0])
            _leave()
            alone = True
        try:
            reply = ["reported", _in_fork(work, arguments, seconds, clock_seconds, memory_bytes, pipes)]
        except OSError as error:
            reply = ["failed", str(error)]
        pipes.reply(json.dumps(reply))


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


def _leave() -> None:
    """Leave the network and the sight of other processes. Afterwards this is the first process of its namespace."""
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        library = ctypes.CDLL(None)
        if library.unshare(_NAMESPACES) == 0:
            if child := os.fork():
                os.waitpid(child, 0)
                os._exit(0)
            library.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _in_fork(
    work: Callable, arguments: list, seconds: int, clock_seconds: float, memory_bytes: int, pipes: Pipes
) -> Any:
    """The last value that `work` reports in a fork of this process, or None."""
    mine, its = os.pipe()
    if (fork := os.fork()) == 0:
        try:
            _confine(its, seconds, memory_bytes)
            work(lambda value: os.write(its, json.dumps(value).encode() + b"\n"), *arguments)
        finally:
            os._exit(0)
    os.close(its)
    try:
        reported = _read(mine, time.monotonic() + clock_seconds, pipes)
    finally:
        for end in (os.killpg, os.kill):  # it leads its session, but for its first moment
            with contextlib.suppress(ProcessLookupError):
                end(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
        os.close(mine)
    values = reported.split(b"\n")[:-1]
    try:
        return json.loads(values[-1]) if values else None
    except (ValueError, RecursionError):
        return None


def _read(descriptor: int, deadline: float, pipes: Pipes) -> bytes:
    """What comes until the other end is closed, the time is over, or the parent is gone."""
    poll, parts, size = select.poll(), [], 0
    poll.register(descriptor, select.POLLIN)
    poll.register(pipes.fileno(), 0)
    while (left := deadline - time.monotonic()) > 0 and size < MOST_REPORT_BYTES:
        ready = dict(poll.poll(left * 1000))
        part = os.read(descriptor, 1 << 16) if descriptor in ready else b""
        if ready and not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _confine(its: int, seconds: int, memory_bytes: int) -> None:
    """Take from this process what its work does not need."""
    os.setsid()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.closerange(3, its)
    os.closerange(its + 1, 4_096)
    os.chdir("/")
    limit("RLIMIT_AS", _reserved_bytes() + memory_bytes, for_good=True)
    limit("RLIMIT_CPU", seconds, for_good=True)
    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC"):
        limit(name, 0, for_good=True)
    sys.addaudithook(_refuse)


def _reserved_bytes() -> int:
    """The address space that this process has."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 1 << 30


def _refuse(event: str, arguments: tuple) -> None:
    """The audit hook: what a function has no need of is an error in it."""
    opens_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if opens_to_write or event.split(".")[0] in _REFUSED and event not in _READS:
        raise PermissionError(f"{event} is not permitted here")
