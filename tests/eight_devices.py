"""One process with eight CPU devices runs the sharded cases of a test worker: JAX is imported once, and waits there.

A case is a script that prints JSON (`tests/training/sharded_losses.py`). It is run as `python -m MODULE ARGUMENTS` runs
it, but in the process that is there already.
"""

import atexit
import contextlib
import functools
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import QUICK_TO_COMPILE, ROOT

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")  # asked here, since a test may replace `os.sysconf`
FLAGS = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"


def printed(module: str, *arguments: str) -> Any:
    """What the script prints, from JSON; an `AssertionError` with its traceback if it fails."""
    process = _process()
    process.stdin.write(json.dumps([module, *arguments]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"{module}: the process with eight devices ended with {process.wait()}"
    found = json.loads(answer)
    assert "failed" not in found, found["failed"]
    return json.loads(found["printed"])


def printed_alone(module: str, *arguments: str, environment: Mapping[str, str] = os.environ) -> Any:
    """The same by a process of its own: for cases that put something in the place of the program's own."""
    command, environment = [sys.executable, "-m", module, *arguments], {**environment, "XLA_FLAGS": FLAGS}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processor_seconds() -> float:
    """What the process has taken until now; 0 if there is none."""
    if not _process.cache_info().currsize or _process().poll() is not None:
        return 0.0
    fields = Path(f"/proc/{_process().pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS_PER_SECOND  # its own and its ended children's


@functools.cache
def _process() -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.eight_devices"]
    environment = {**os.environ, "XLA_FLAGS": FLAGS}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    atexit.register(process.kill)
    return process


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries write to stdout is no answer
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        sys.argv, said = [module, *arguments], io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                runpy.run_module(module, run_name="__main__")
            answer = {"printed": said.getvalue()}
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
