"""The start-up script by itself: what it fetches, with which credentials, and how it reports a failure."""

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.launchers.fake_metadata import Metadata
from tpullm.launchers import startup

TOKEN = "ya29.a-secret-that-is-never-shown"
WHEEL = "a/run/launch/code/tpullm-1+abc-py3-none-any.whl"
TOLD = {
    "tpullm-job": "gs://b/a/run/launch/x/jobs/0123.json",
    "tpullm-attempt": "3",
    "tpullm-wheel": f"gs://b/{WHEEL}",
    "tpullm-python": sys.executable,
    "tpullm-place": '{"hosts": "2"}',
    "agent-worker-number": "1",
}


class Bucket(BaseHTTPRequestHandler):
    """A bucket that refuses every request without the machine's token, unlike the emulator of the other tests."""

    objects: dict[str, bytes]
    requests: list[str]
    cut = 0  # bytes that are missing at the end of an answer

    def do_GET(self):
        name = unquote(urlsplit(self.path).path.removeprefix("/storage/v1/b/b/o/"))
        self._answer(200 if name in self.objects else 404, self.objects.get(name, b""))

    def do_POST(self):
        query = parse_qs(urlsplit(self.path).query)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self._answer(200, b"{}"):
            self.objects[query["name"][0]] = content

    def _answer(self, code: int, content: bytes) -> bool:
        self.requests.append(self.path)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.send_response(code if allowed else 401)
        self.send_header("Content-Length", str(len(content) if allowed else 0))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.cut] if allowed else b"")
        return allowed

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def storage():
    """The bucket, with a wheel whose supervisor prints its arguments."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("tpullm/__init__.py", "tpullm/launchers/__init__.py"):
            archive.writestr(name, "")
        archive.writestr("tpullm/launchers/supervisor.py", "import json, sys; print(json.dumps(sys.argv[1:]))")
    handler = type("Handler", (Bucket,), {"objects": {WHEEL: wheel.getvalue()}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def boot(storage, tmp_path):
    """Runs the script as a machine does when it boots, with attributes of metadata and variables."""

    def run(attributes, variables=()) -> subprocess.CompletedProcess:
        metadata = Metadata("machine", attributes, token=TOKEN)
        own = {"PATH": os.environ["PATH"], "GCE_METADATA_HOST": metadata.address, "TPULLM_HOME": str(tmp_path / "home")}
        environment = own | {"STORAGE_EMULATOR_HOST": storage.address} | dict(variables)
        command = ["sh", "-c", startup.text()]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        metadata.close()
        return done

    return run


def reported(storage) -> dict:
    """The one report of a failure."""
    ((name, content),) = ((name, content) for name, content in storage.objects.items() if name != WHEEL)
    assert Path(name).match("a/run/launch/x/attempts/0003/ended/setup-*.json")
    return json.loads(content)


ARGUMENTS = ["--job", TOLD["tpullm-job"], "--attempt", "3", "--place", TOLD["tpullm-place"]]


def test_the_code_is_fetched_once_with_the_machines_token_and_started(boot, storage):
    for _ in range(2):
        done = boot(TOLD)
        assert done.returncode == 0 and json.loads(done.stdout) == ARGUMENTS, done.stderr
    assert storage.requests == [f"/storage/v1/b/b/o/{WHEEL.replace('/', '%2F').replace('+', '%2B')}?alt=media"]


def test_a_task_of_batch_is_told_by_its_variables(boot):
    variables = {key.upper().replace("-", "_"): value for key, value in TOLD.items()}
    done = boot({}, variables)
    assert done.returncode == 0 and json.loads(done.stdout) == ARGUMENTS, done.stderr


def test_a_failure_is_reported_with_the_machines_token_which_is_left_nowhere(boot, storage, tmp_path):
    done = boot(TOLD | {"tpullm-python": "/no/such/python"})
    report = reported(storage)
    assert done.returncode == 1 and (report["host"], report["code"]) == (1, 1)
    assert report["line"].startswith("set-up on ") and report["line"].endswith(": /no/such/python: does not run")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize("broken", ["absent", "cut"])
def test_a_wheel_that_can_not_be_fetched_whole_is_not_started(boot, storage, broken):
    if broken == "absent":
        del storage.objects[WHEEL]
    storage.cut = 10 if broken == "cut" else 0
    done = boot(TOLD)
    storage.cut = 0
    assert done.returncode == 1 and done.stdout == ""
    assert f"{WHEEL} can't be fetched" in reported(storage)["line"]


def test_a_machine_that_is_told_nothing_says_so(boot, storage):
    done = boot({})
    assert done.returncode == 1 and "tpullm-job: is not in the metadata" in done.stderr and storage.requests == []
