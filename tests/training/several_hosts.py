"""Several hosts as processes of this machine that share 8 CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import QUICK_TO_COMPILE, ROOT, interruptible
from tpullm.system.cluster.handshake import free_port


def start(hosts: int, module: str, *words, devices: int = 8, own=None, folders=None, within=None) -> list:
    """Start the same `python -m ...` on every host.

    Args:
        own: by host, further words.
        folders: by host, the folder of its package; default is this project.
        within: by host, its working directory; default is the folder of its package.
    """
    flags = f"--xla_force_host_platform_device_count={devices // hosts} {QUICK_TO_COMPILE}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(hosts):
        place = ["--hosts.coordinator", address, "--hosts.count", hosts, "--hosts.index", index]
        command = [sys.executable, "-m", module, *words, *(place if hosts > 1 else []), *(own or {}).get(index, [])]
        folder = (folders or {}).get(index, ROOT)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        here = {"cwd": (within or {}).get(index, folder), "env": environment | {"PYTHONPATH": str(folder)}}
        with interruptible():
            started.append(subprocess.Popen(list(map(str, command)), **pipes, **here))
    return started


def finish(started: list, timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, output and messages of each host."""
    ended = []
    try:
        for process in started:
            out, said = process.communicate(timeout=timeout)
            ended.append((process.returncode, out, said))
    finally:
        for process in started:
            process.kill()
    return ended


def run(hosts: int, *command: str | Path, timeout: float = 300, **options) -> list[tuple[int, str, str]]:
    """Start and finish; all hosts must succeed."""
    ended = finish(start(hosts, *command, **options), timeout)
    assert [code for code, _, _ in ended] == [0] * hosts, "\n".join(said for _, _, said in ended)
    return ended
