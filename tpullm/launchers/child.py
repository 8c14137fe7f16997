"""A child process whose lines are passed on as they come, and which ends with this process, whatever ends it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

# In the child, before it is the command: the kernel (Linux has this) kills it when its parent is gone. It is a program
# and no function between fork and exec, because a parent with threads (a notebook's JAX) may hang in such a fork.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A running command.

    Args:
        command: its words.
        environment: all its variables.
        line: called with each line that it writes, without its end, from a thread; stdout and stderr are one.

    It must be made in a thread that lives as long as the child should: that thread's end is what ends it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], line: Callable[[str], None]):
        self.last_line = ""
        self._line = line
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Of its own: a Ctrl-C at the terminal comes to this process alone, which passes it on.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code as a shell has it (128 and the signal's number), when it has ended and all was read."""
        code = self._process.poll()
        if code is not None and self._reader:
            self._reader.join(5.0)  # no longer: something that it started may hold the pipe
            self._reader = None
        return code if code is None or code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        for text in self._process.stdout:
            text = text.rstrip("\n").rpartition("\r")[2]
            if text.strip():
                self.last_line = text
            self._line(text)
