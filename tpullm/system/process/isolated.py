"""Runs functions of ours on what a model wrote, such as a program: each call in processes that can do little else.

A child on each core waits for calls, and forks for each. The fork reads the call and does it, and reports values (JSON)
as it goes; the last one before its end counts, however it ends. The child itself reads no call, so no fork of it has
seen another's. `confinement.py` is what holds a fork.

The child has no threads, so its forks are safe.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tpullm.system.errors import UserError
from tpullm.system.process import cores
from tpullm.system.process.child import Child, Ended, Pipes
from tpullm.system.process.confinement import confine, interpreter_rules, leave_the_machine

NOT_ISOLATED = "TPULLM_PROGRAMS_NOT_ISOLATED"  # where it is 1, programs run that could read the user's files
CLOCK_FACTOR = 5  # a call may take as many times its processor time by the clock: for what sleeps
START_SECONDS = 120  # of a child, with what it imports


class Outcome(NamedTuple):
    """What became of a call.

    Args:
        value: its last report; None if there is none.
        late: a process of it was ended since its time was over.
    """

    value: Any
    late: bool


def check_programs_may_run() -> bool:
    """Whether a program that a model wrote can open Python's library alone.

    Raises:
        UserError: it can't be kept from the user's files here, and `NOT_ISOLATED` is not 1.
    """
    if os.environ.get(NOT_ISOLATED) == "1":
        return False
    try:
        os.close(interpreter_rules())
    except OSError as error:
        raise UserError(
            f"programs that a model wrote could read your files and processes here ({error.strerror}); use Linux 5.13 "
            f"or later with Landlock, or a container that holds nothing else, with {NOT_ISOLATED}=1"
        ) from None
    return True


class Isolated:
    """Calls of one function, on all cores.

    Args:
        function: `module:name`. Its first argument is `report(value)`; a value is JSON.
        seconds: of the processor for each process of one call.
        memory_bytes: for each, beyond what Python and the module have.
        program: `module:name` of what runs beside the function, in another process that never sees the call. It gets
            the descriptor of a socket; the function gets that of the other end, as its second argument.
    """

    def __init__(self, function: str, seconds: int, memory_bytes: int, program: str = ""):
        sees_all = bool(program) and not check_programs_may_run()
        self._clock_seconds = seconds * CLOCK_FACTOR
        self._order = [function, program, seconds, self._clock_seconds, memory_bytes, sees_all]
        self._children: list[Child] = []
        self._waiting: Iterator[str] = iter(())  # the calls that no thread has begun

    def map(self, calls: Sequence[list]) -> list[Outcome]:
        """What became of each call (its arguments are JSON), in their order.

        Equal calls are made once: many answers to one prompt are the same, and a call costs 25 ms of a core.
        `UserError` if no process can be started here.
        """
        keys = [json.dumps(call, ensure_ascii=False) for call in calls]
        distinct = dict(zip(keys, calls, strict=True))
        while len(self._children) < min(cores(), len(distinct)):
            self._children.append(Child("tpullm.system.process.isolated:serve", first=self._order))
        found: dict[str, Outcome] = {}
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
        return [found[key] for key in keys]

    def _call(self, child: Child, arguments: list) -> Outcome:
        seconds = self._clock_seconds + START_SECONDS
        try:
            try:
                kind, *found = child.ask(arguments, seconds)
            except Ended:  # something has ended it, such as a machine without memory
                kind, *found = child.ask(arguments, seconds)
        except Ended as end:
            raise UserError(
                f"the process for what a model wrote ends at its start (exit code {end.code}); "
                f"try `{sys.executable} -I -c 'import tpullm.system.process.isolated'`"
            ) from None
        if kind == "failed":
            raise UserError(f"no process can be started for what a model wrote ({found[0]}); free memory or processes")
        return Outcome(*found)

    def close(self) -> None:
        """End the children, and begin no further call."""
        self._waiting = iter(())
        for child in self._children:
            child.close()


def serve() -> None:
    """Have calls done until the pipe is closed; what a child runs."""
    pipes = Pipes()
    function, program, seconds, clock_seconds, memory_bytes, sees_all = next(pipes.requests())
    names = [name.split(":") for name in (function, program) if name]
    # Before this process becomes `nobody`, who may not read all files.
    works = [getattr(importlib.import_module(module), name) for module, name in names]
    rules = interpreter_rules() if program and not sees_all else 0
    leave_the_machine(function.split(".")[0])
    while pipes.wait():
        try:
            reply = ["reported", *_call_in_fork(works, seconds, clock_seconds, memory_bytes, rules, pipes)]
        except OSError as error:
            reply = ["failed", str(error)]
        pipes.reply(json.dumps(reply))


def _call_in_fork(
    works: list, seconds: int, clock_seconds: float, memory_bytes: int, rules: int, pipes: Pipes
) -> Outcome:
    """Have the call done that comes next in the pipe. The program opens what the rules have; 0 is no rules."""
    (mine, its), sides, forks = os.pipe(), socket.socketpair(), []
    deadline = time.monotonic() + clock_seconds

    def judge() -> None:
        arguments = next(pipes.requests())
        os.write(its, b"null\n")  # a first report: the call is read
        confine({its, sides[0].fileno()}, seconds, memory_bytes)
        ends = [sides[0].fileno()] if works[1:] else []
        works[0](lambda value: os.write(its, json.dumps(value).encode() + b"\n"), *ends, *arguments)

    def program() -> None:
        confine({sides[1].fileno()}, seconds, memory_bytes, rules)
        works[1](sides[1].fileno())

    try:
        for work in (judge, program)[: len(works)]:
            if (fork := os.fork()) == 0:
                try:
                    work()
                finally:  # whatever it may raise is not told
                    os._exit(0)
            forks.append(fork)
        for end in (its, sides[0].detach(), sides[1].detach()):
            os.close(end)
        reported = _read_from_fork(mine, deadline, pipes)
    finally:
        is_over = time.monotonic() >= deadline
        ends = [_end_fork(fork) for fork in forks]
        os.close(mine)
    if not reported:  # it is still in the pipe, as what comes next
        os._exit(1)
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(reported.split(b"\n")[-2])
    return Outcome(value, is_over or signal.SIGXCPU in ends)


def _end_fork(fork: int) -> int:
    """End a fork; the signal that ended it, or 0."""
    for end in (os.killpg, os.kill):  # it leads its session, but for its first moment
        with contextlib.suppress(ProcessLookupError):
            end(fork, signal.SIGKILL)
    status = os.waitpid(fork, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _read_from_fork(descriptor: int, deadline: float, pipes: Pipes) -> bytes:
    """The last line, and what follows it, of what comes until the other end is closed, the time is over, or the parent
    is gone."""
    poll, kept = select.poll(), b""
    poll.register(descriptor, select.POLLIN)
    poll.register(pipes.fileno(), 0)
    while (left := deadline - time.monotonic()) > 0 and len(kept) < 1 << 20:
        ready = dict(poll.poll(left * 1000))
        part = os.read(descriptor, 1 << 16) if descriptor in ready else b""
        if ready and not part:
            break
        kept = b"\n".join((kept + part).split(b"\n")[-2:])
    return kept
