"""A child process whose lines are passed on as they come. It ends when this process ends, also by SIGKILL."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

# Runs in the child, then executes the command. It has the kernel (Linux only) kill the child when its parent is gone.
# It is a program, not a function between fork and exec: in a parent with threads (a notebook's JAX), that may hang.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

SECONDS_TO_READ = 5.0  # after the child's end: a process that it started may hold the pipe open for longer


class Child:
    """A running command.

    Args:
        command: program and arguments.
        environment: all environment variables of the child.
        line: called from a thread with each line of stdout and stderr, without the newline.

    The thread that makes a `Child` must live as long as the child should: the kernel kills the child with it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], line: Callable[[str], None]):
        self.last_line = ""
        self._line = line
        started = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # In a session of its own: Ctrl-C at the terminal reaches this process alone, which passes it on.
        own = {"env": environment, "start_new_session": True}
        self._process = subprocess.Popen(started, text=True, errors="replace", **pipes, **own)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def poll(self) -> int | None:
        """The exit code as of a shell (128 + number of a signal), when the child has ended and its lines are read."""
        code = self._process.poll()
        if code is not None and self._reader:
            self._reader.join(SECONDS_TO_READ)
            self._reader = None
        return code if code is None or code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the child still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the child and all processes of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        for text in self._process.stdout:
            text = text.rstrip("\n")
            if text.strip():
                self.last_line = text
            self._line(text)
