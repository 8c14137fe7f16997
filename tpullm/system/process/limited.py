"""Runs a function of ours on what others made, in a child process with limits of time and memory.

A chat template, a tokenizer or a page can cost hours and all memory in a few bytes. No check of the text finds that out
(a template is a program), and a thread can't be stopped. So a child reads it, and its end is one line of an error.

The limits bound what a reader costs. They are no sandbox: the child is this user. What comes back is JSON, bounded and
checked by the caller, and the child gets no variables of the environment, which may hold credentials.
"""

import importlib
import json
import math
import signal
import threading
import time
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.log import one_line
from tpullm.system.process.child import MOST_REPLY_BYTES, Child, Ended, NoAnswer, Pipes, TooLong, TooMuch, limit

# A tokenizer of the largest kind (262,144 tokens, 515,000 merges, 28 MB of JSON) reserves 0.71 GiB, a template 0.11.
MEMORY_BYTES = 1 << 30
CPU_SECONDS = 20  # of the processor for one call, whatever else the machine does; that tokenizer takes 1.7 s
WALL_SECONDS = 120  # for what waits instead of computing
GRACE_SECONDS = 10  # then the parent ends a child that did not end itself
_HOSTILE = "it is broken or hostile, do not use it"


class Limited:
    """A child that calls functions of ours; it starts with the first call, and again after an end.

    Args:
        cpu_seconds: of the processor for one call; 0 is `CPU_SECONDS`.
    """

    def __init__(self, cpu_seconds: int = 0) -> None:
        self._child, self._cpu_seconds = Child("tpullm.system.process.limited:serve"), cpu_seconds
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
        seconds = self._cpu_seconds or CPU_SECONDS
        with self._turn:
            try:
                request = [seconds, WALL_SECONDS, function, *arguments]
                reply = self._child.ask(request, WALL_SECONDS + GRACE_SECONDS)
            except Ended as end:
                raise UserError(f"{what}: reading it {_how_child_ended(end, seconds)}; {_HOSTILE}") from None
            kind, value = reply if isinstance(reply, list) and len(reply) == 2 else ("no answer", None)
            if kind not in ("result", "refused", "failed"):
                self.close()  # its memory is full, or it is no more itself
        if kind == "result":
            return value
        if kind == "refused":
            raise UserError(one_line(str(value)))
        if kind == "memory":
            raise UserError(f"{what}: reading it needs more than {MEMORY_BYTES >> 30} GiB of memory; {_HOSTILE}")
        raise UserError(f"{what}: can't be read ({one_line(str(value), 200) if kind == 'failed' else 'no answer'})")

    def close(self) -> None:
        """End the child."""
        self._child.close()


def _how_child_ended(end: Ended, cpu_seconds: int) -> str:
    """How a child ended that answers no more."""
    if isinstance(end, TooMuch):
        return f"makes more than {MOST_REPLY_BYTES >> 20} MiB of it"
    if isinstance(end, NoAnswer):
        return "gives no answer"
    if isinstance(end, TooLong) or end.code == -signal.SIGALRM:
        return f"takes more than {WALL_SECONDS} s"
    if end.code == -signal.SIGXCPU:
        return f"takes more than {cpu_seconds} s of the processor"
    how = f"by signal {-end.code}" if end.code is not None and end.code < 0 else f"with exit code {end.code}"
    return f"ends {how} (is {MEMORY_BYTES >> 30} GiB of memory too little?)"


def serve() -> None:
    """Answer calls until the pipe is closed; what the child runs. Whatever a library prints goes nowhere."""
    pipes = Pipes()
    threading.Thread(target=pipes.end_with_parent, daemon=True).start()
    limit("RLIMIT_AS", MEMORY_BYTES)
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_FSIZE", 0)  # it reads
    for cpu_seconds, wall_seconds, function, *arguments in pipes.requests():
        limit("RLIMIT_CPU", math.ceil(time.process_time()) + cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)  # its signal ends the process, also in native code
        module, name = function.split(":")
        text, failed = "", []
        try:
            result = getattr(importlib.import_module(module), name)(*arguments)
            text = json.dumps(["result", result], ensure_ascii=False)
            if len(text) > MOST_REPLY_BYTES:
                failed = ["failed", f"it becomes {len(text):,} bytes"]
        except MemoryError:
            failed = ["memory", ""]
        except UserError as error:
            failed = ["refused", str(error)[:10_000]]
        except BaseException as error:  # foreign data, and libraries in other languages with panics of their own
            failed = ["failed", f"{type(error).__name__}: {error}"[:10_000]]
        pipes.reply(json.dumps(failed, ensure_ascii=False) if failed else text)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if failed[:1] == ["memory"]:
            break
