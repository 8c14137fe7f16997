"""Saves on a store that answers 503 for a minute."""

import http.client
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT
from tests.run.test_resume import assert_same_bits, metrics
from tpullm.formats import checkpoints as checksums
from tpullm.formats.models import steps
from tpullm.system import storage


class Busy(ThreadingHTTPServer):
    """Passes requests on to a server, or answers 503 while `busy` is set.

    Args:
        address: of the server.
    """

    def __init__(self, address: str):
        self.behind, self.busy, self.refused = address.removeprefix("http://"), threading.Event(), 0
        super().__init__(("127.0.0.1", 0), Passing)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.busy.is_set():
            self.server.refused += 1
            return self._answer(503, {}, b"busy")
        behind = http.client.HTTPConnection(self.server.behind)
        try:
            behind.request(self.command, self.path, sent, dict(self.headers) | {"Host": self.server.behind})
            answer = behind.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            self._answer(answer.status, headers, answer.read())
        finally:
            behind.close()

    def _answer(self, status, headers, body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass

    def log_message(self, *arguments):
        pass


HOP_BY_HOP = {"transfer-encoding", "connection", "content-length"}


@pytest.mark.slow
def test_a_store_that_answers_503_for_a_minute_costs_nothing(tiny_run, bucket, storage_server):
    """From the second save on, while the training goes on; all saves are whole in the end."""
    run = bucket / "runs" / "tiny"
    names = [path.relative_to(tiny_run).as_posix() for path in tiny_run.rglob("*") if path.is_file()]
    made = [name for name in names if re.match("recipe|documents|tokenizer|tokens", name)]
    storage.remote().upload_all(tiny_run, run, made)
    server = Busy(storage_server.address)
    environment = os.environ | {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}"}
    command = [sys.executable, "-m", "tpullm", "pretrain", "--run", str(run)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        checkpoints, began = run / "pretrain" / "checkpoints", time.monotonic()
        while not (checkpoints.is_dir() and steps(checkpoints)) and time.monotonic() - began < 120:
            assert process.poll() is None
            time.sleep(0.1)
        server.busy.set()
        time.sleep(60)
        server.busy.clear()
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
        server.shutdown()
    assert process.returncode == 0, said
    assert server.refused > 3
    assert said.count("does not answer") == 1 and "Traceback" not in said, said
    assert metrics(tiny_run / "pretrain") == metrics(run / "pretrain")
    assert_same_bits(tiny_run / "pretrain", run / "pretrain")
    for step in steps(checkpoints):
        assert (checkpoints / str(step) / checksums.FILE).exists()
        checksums.verify(checkpoints / str(step))
