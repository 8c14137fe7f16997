"""A process of ours that answers requests over a pipe, one after the other: JSON in, JSON out.

The child is a new Python. A fork of a process with JAX's threads may hang, and `multiprocessing` would run a user's
script again that has no `if __name__ == "__main__"`. It ends when its owner is collected, and when this process ends,
however it ends.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_REPLY_BYTES = 1 << 26
# One thread: each further one of a library reserves memory that it never uses, and a limit counts what is reserved.
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")


class Ended(Exception):
    """The child answers no more, and was ended; `code` is its exit code, if it had ended itself."""

    def __init__(self, code: int | None = None):
        super().__init__(code)
        self.code = code


class TooLong(Ended):
    """No answer came in time."""


class TooMuch(Ended):
    """The answer is longer than `MOST_REPLY_BYTES`."""


class NoAnswer(Ended):
    """What came is not JSON."""


class Closed(Exception):
    """Another thread closed the child, which is wanted no more."""


class Child:
    """It starts with the first request, and again after an end.

    Args:
        serve: `module:function` of ours, which the child runs: it answers `requests()` by `reply`.
        foreign: it works on what others made, so it gets no variables of the environment, which may hold credentials,
            and what it prints goes nowhere. Otherwise it is the user's own program, and prints on stderr.
        first: a request that comes before all others, each time it starts, and is not answered.
    """

    def __init__(self, serve: str, foreign: bool = True, first: Any = None):
        self._serve, self._foreign, self._first = serve, foreign, first
        self._process: subprocess.Popen | None = None

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to `request`, which nobody has checked yet; `Ended` if there is none after `seconds`.

        `Closed` if another thread closes the child meanwhile.
        """
        process = self._running()
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: its exit code says how
                send(process.stdin.fileno(), json.dumps(request, ensure_ascii=False))
            deadline = time.monotonic() + seconds
            size = int.from_bytes(_read_from_child(process, 8, deadline), "big")
            if size > MOST_REPLY_BYTES:
                raise TooMuch
            reply = _read_from_child(process, size, deadline)
            try:
                return json.loads(reply.decode("utf-8", "surrogatepass"))
            except (ValueError, RecursionError):
                raise NoAnswer from None
        except BaseException:  # also Ctrl-C: the child is not left behind
            if self._process is not process:
                raise Closed from None
            self.close()
            raise

    def close(self) -> None:
        """End the child, and the processes that it started."""
        process, self._process = self._process, None
        if process:
            _end_child(process)

    def _running(self) -> subprocess.Popen:
        if self._process and self._process.poll() is None:
            return self._process
        self.close()
        module, serve = self._serve.split(":")
        start = f"import sys; sys.path[:] = sys.argv[1:]; from {module} import {serve}; {serve}()"
        path = [str(Path(__file__).parents[3]), *filter(None, sys.path)]
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ} | _ONE_THREAD
        self._process = subprocess.Popen(
            [sys.executable, *(("-I", "-S") if self._foreign else ()), "-B", "-c", start, *path],
            env=kept if self._foreign else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self._foreign else None,
            start_new_session=True,  # Ctrl-C at the terminal reaches this process alone, which ends the child
        )
        weakref.finalize(self, _end_child, self._process)
        if self._first is not None:
            with contextlib.suppress(BrokenPipeError):
                send(self._process.stdin.fileno(), json.dumps(self._first))
        return self._process


def _read_from_child(process: subprocess.Popen, size: int, deadline: float) -> bytes:
    """`size` bytes of the child's answer."""
    found = read(process.stdout.fileno(), size, deadline)
    if len(found) < size:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        raise Ended(process.poll())
    return found


def _end_child(process: subprocess.Popen) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its session
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # what was not sent yet
            pipe.close()


def send(descriptor: int, text: str) -> None:
    """Send a message: its length in 8 bytes, then its text."""
    data = text.encode("utf-8", "surrogatepass")
    left = memoryview(len(data).to_bytes(8, "big") + data)
    while left:
        left = left[os.write(descriptor, left) :]


def read(descriptor: int, size: int, deadline: float | None = None) -> bytes:
    """`size` bytes, or fewer if the other end is closed; `TooLong` if they are not there by then."""
    poll, parts = select.poll(), []
    poll.register(descriptor, select.POLLIN)
    while size > 0:
        if deadline is not None and not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TooLong
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Pipes:
    """The child's end. What is printed from now on goes to `prints`, a file descriptor, or nowhere."""

    def __init__(self, prints: int | None = None):
        self._requests, self._replies = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere if prints is None else prints, 1)
        os.close(nowhere)

    def requests(self) -> Iterator[Any]:
        """Each request, until the parent closes the pipe. Nothing is read before it is asked for."""
        while size := read(self._requests, 8):
            yield json.loads(read(self._requests, int.from_bytes(size, "big")).decode("utf-8", "surrogatepass"))

    def wait(self) -> bool:
        """Wait for a request; False if the parent has closed the pipe."""
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        return any(event & select.POLLIN for _, event in poll.poll())

    def reply(self, text: str) -> None:
        """Answer the last request with JSON."""
        send(self._replies, text)

    def fileno(self) -> int:
        """The descriptor that reports POLLHUP when the parent is gone, or needs this process no more."""
        return self._requests

    def end_with_parent(self) -> None:
        """Wait for that, then end this process: what a thread does."""
        poll = select.poll()
        poll.register(self.fileno(), 0)
        while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
            pass
        os._exit(0)


def limit(name: str, value: int, for_good: bool = False) -> None:
    """Lower a limit of this process, for good or so that it may be raised again; not every system has every limit."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value if for_good else hard))


def go_last(nice: int = 10, session: bool = False) -> None:
    """Give this thread less weight than an ordinary one, and those that it starts; Linux alone weighs threads.

    Args:
        nice: 10 is a tenth of the weight, 5 a third.
        session: and the session of this process, such as a child has: Linux may weigh sessions first.
    """
    if sys.platform != "linux":  # elsewhere the number of a thread may be that of another process
        return
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
        if session:
            Path("/proc/self/autogroup").write_text("10")
