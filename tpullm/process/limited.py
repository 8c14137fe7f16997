"""Runs a function of ours on what others made, in a child process with limits of time and memory.

A chat template, a tokenizer or a page can cost hours and all memory in a few bytes. No check of the text finds that out
(a template is a program), and a thread can't be stopped. So a child reads it, and its end is one line of an error.

The limits bound what a reader costs. They are no sandbox: the child is this user. What comes back is JSON, bounded and
checked by the caller, and the child gets no variables of the environment, which may hold credentials.

The child is a new Python. A fork of a process with JAX's threads may hang, and `multiprocessing` would run a user's
script again that has no `if __name__ == "__main__"`.
"""

import contextlib
import importlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from tpullm.errors import UserError
from tpullm.log import one_line

# A tokenizer of the largest kind (262,144 tokens, 515,000 merges, 28 MB of JSON) reserves 0.71 GiB, a template 0.11.
MEMORY_BYTES = 1 << 30
CPU_SECONDS = 20  # of the processor for one call, whatever else the machine does; that tokenizer takes 1.7 s
WALL_SECONDS = 120  # for what waits instead of computing
GRACE_SECONDS = 10  # then the parent ends a child that did not end itself
MOST_REPLY_BYTES = 1 << 26
# One thread: each further one of a library reserves memory that it never uses, and the limit counts what is reserved.
_ONE_THREAD = {
    name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MALLOC_ARENA_MAX")
}
_KEPT = ("LD_LIBRARY_PATH", "TZ")
_START = "import sys; sys.path[:] = sys.argv[1:]; from tpullm.process.limited import serve; serve()"


class Limited:
    """A child that calls functions of ours; it starts with the first call, and again after an end.

    It ends when this object is collected, and when this process ends, however it ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._turn = threading.Lock()

    def call(self, what: str, function: str, *arguments: Any) -> Any:
        """The result of a function, which is JSON that nobody has checked yet.

        Args:
            what: what is read: the beginning of an error.
            function: `module:name`.
            arguments: JSON.

        Raises:
            UserError: the function raises one, or any other error, or it ends at a limit; the error is one line.
        """
        with self._turn:
            try:
                reply = self._ask(json.dumps([CPU_SECONDS, WALL_SECONDS, function, *arguments], ensure_ascii=False))
            except _Ended as end:
                self.close()
                raise UserError(f"{what}: reading it {end}; it is broken or hostile, do not use it") from None
            except BaseException:  # Ctrl-C: the child is not left behind
                self.close()
                raise
            kind, value = reply if isinstance(reply, list) and len(reply) == 2 else ("no answer", None)
            if kind not in ("result", "refused", "failed"):
                self.close()  # its memory is full, or it is no more itself
        return _result(kind, value, what)

    def close(self) -> None:
        """End the child."""
        if self._process:
            _end(self._process)
        self._process = None

    def _ask(self, request: str) -> Any:
        process = self._running()
        with contextlib.suppress(BrokenPipeError):  # it has ended: its exit code says how
            _send(process.stdin, request)
        deadline = time.monotonic() + WALL_SECONDS + GRACE_SECONDS
        size = int.from_bytes(self._read(process, 8, deadline), "big")
        if size > MOST_REPLY_BYTES:
            raise _Ended(f"makes more than {MOST_REPLY_BYTES >> 20} MiB of it")
        try:
            return json.loads(self._read(process, size, deadline).decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            raise _Ended("gives no answer") from None

    def _running(self) -> subprocess.Popen:
        if self._process and self._process.poll() is None:
            return self._process
        self.close()
        path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _START, *path],
            env={name: os.environ[name] for name in _KEPT if name in os.environ} | _ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal reaches this process alone, which ends the child
        )
        weakref.finalize(self, _end, self._process)
        return self._process

    def _read(self, process: subprocess.Popen, size: int, deadline: float) -> bytes:
        """`size` bytes of the child's answer."""
        poll, parts = select.poll(), []
        poll.register(process.stdout, select.POLLIN)
        while size > 0:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise _Ended(f"takes more than {WALL_SECONDS} s")
            part = os.read(process.stdout.fileno(), min(size, 1 << 20))
            if not part:
                raise _Ended(_how(process))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Ended(Exception):
    """The child ended, or has to be ended: the text says why."""


def _how(process: subprocess.Popen) -> str:
    """How a child ended that answers no more."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)
    code = process.poll()
    if code == -signal.SIGXCPU:
        return f"takes more than {CPU_SECONDS} s of the processor"
    if code == -signal.SIGALRM:
        return f"takes more than {WALL_SECONDS} s"
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return f"ends {how} (is {MEMORY_BYTES >> 30} GiB of memory too little?)"


def _result(kind: str, value: Any, what: str) -> Any:
    if kind == "result":
        return value
    if kind == "refused":
        raise UserError(one_line(str(value)))
    if kind == "memory":
        raise UserError(
            f"{what}: reading it needs more than {MEMORY_BYTES >> 30} GiB of memory; it is broken or hostile, "
            "do not use it"
        )
    raise UserError(f"{what}: can't be read ({one_line(str(value), 200) if kind == 'failed' else 'no answer'})")


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # what was not sent yet
            pipe.close()


def _send(pipe: BinaryIO, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def serve() -> None:
    """Answer calls until the pipe is closed; what the child runs. Whatever a library prints goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    threading.Thread(target=_end_with, args=(requests.fileno(),), daemon=True).start()
    _limit("RLIMIT_AS", MEMORY_BYTES)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", 0)  # it reads
    kind = "result"
    while kind != "memory" and (size := requests.read(8)):
        request = requests.read(int.from_bytes(size, "big")).decode("utf-8", "surrogatepass")
        cpu_seconds, wall_seconds, function, *arguments = json.loads(request)
        _limit("RLIMIT_CPU", math.ceil(time.process_time()) + cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)  # its signal ends the process, also in native code
        kind, text = _answer(function, arguments)
        _send(replies, text)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(function: str, arguments: list) -> tuple[str, str]:
    """The kind of an answer, and the answer as JSON."""
    module, name = function.split(":")
    try:
        kind, value = "result", getattr(importlib.import_module(module), name)(*arguments)
        text = json.dumps([kind, value], ensure_ascii=False)
        if len(text) <= MOST_REPLY_BYTES:
            return kind, text
        kind, value = "failed", f"it becomes {len(text):,} bytes"
    except MemoryError:
        kind, value = "memory", ""
    except UserError as error:
        kind, value = "refused", str(error)[:10_000]
    except BaseException as error:  # foreign data, and libraries in other languages, whose panics are no `Exception`
        kind, value = "failed", f"{type(error).__name__}: {error}"[:10_000]
    return kind, json.dumps([kind, value], ensure_ascii=False)


def _limit(name: str, value: int) -> None:
    """Lower a limit of this process; not every system has every limit."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        resource.setrlimit(number, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _end_with(pipe: int) -> None:
    """End this process when the other end of the pipe is closed: its parent is gone, or needs it no more."""
    poll = select.poll()
    poll.register(pipe, 0)
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
        pass
    os._exit(0)
