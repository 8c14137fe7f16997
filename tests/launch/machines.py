"""Processes in place of machines: each machine is a process group, and none outlives its test."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

KEPT = ("PATH", "LANG", "TMPDIR")  # the only variables of the test that a machine gets


def start(script: str, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Run the text of a script, as the agent on a machine does; what it prints is appended to `folder/log`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "script"
    file.write_text(script, encoding="utf-8")
    file.chmod(0o755)
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    with open(folder / "log", "ab") as log:
        pipes = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        own |= {"HOME": str(folder)} | dict(environment)
        return subprocess.Popen([str(file)], env=own, cwd=folder, start_new_session=True, **pipes)


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
