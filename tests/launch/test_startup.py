"""The start-up script by itself: what it fetches, with which credentials, how it reports a failure, and how it ends."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.conftest import ROOT
from tests.launch.fake_metadata import Metadata

SCRIPT = (ROOT / "tpullm" / "launch" / "startup.sh").read_text("utf-8")
pytestmark = pytest.mark.ci  # real shells and servers, 50 s together; `test_job.py` has what a machine is told

TOKEN = "ya29.a-secret-that-is-never-shown"
WHEEL = "a/run/launch/code/tpullm-1+abc-py3-none-any.whl"
SUPERVISOR = """
import json, pathlib, sys
print(json.dumps(sys.argv[1:]), flush=True)
pathlib.Path(sys.argv[-1]).touch()
"""


def packed(supervisor: str = SUPERVISOR, head: str = "") -> bytes:
    """A wheel with a supervisor, which prints its arguments and has then reported."""
    wheel, program = io.BytesIO(), supervisor.replace("\n", "\n    ")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (
            ("tpullm/__init__.py", ""),
            ("tpullm/launch/__init__.py", ""),
            ("tpullm/launch/supervisor.py", f"{head}\nif __name__ == '__main__':\n    {program}\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name), text)  # dated 1980: the same bytes each time
    return wheel.getvalue()


TOLD = {
    "tpullm-job": "gs://b/a/run/launch/x/jobs/0123.json",
    "tpullm-attempt": "3",
    "tpullm-wheel": f"gs://b/{WHEEL}",
    "tpullm-sha256": hashlib.sha256(packed()).hexdigest(),
    "tpullm-python": sys.executable,
    "tpullm-seconds": "7200",
    "agent-worker-number": "1",
}


class Bucket(BaseHTTPRequestHandler):
    """A bucket that refuses every request without the machine's token, unlike the emulator of the other tests."""

    disable_nagle_algorithm = True
    objects: dict[str, bytes]
    requests: list[str]
    cut = 0  # bytes that are missing at the end of an answer
    readonly = False

    def do_GET(self):
        name = unquote(urlsplit(self.path).path.removeprefix("/storage/v1/b/b/o/"))
        self._answer(200 if name in self.objects else 404, self.objects.get(name, b""))

    def do_POST(self):
        query = parse_qs(urlsplit(self.path).query)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.readonly and self._allowed():  # before the answer, after which the script may end
            self.objects[query["name"][0]] = content
        self._answer(403 if self.readonly else 200, b"{}")

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _answer(self, code: int, content: bytes) -> None:
        self.requests.append(self.path)
        allowed = self._allowed()
        self.send_response(code if allowed else 401)
        self.send_header("Content-Length", str(len(content) if allowed else 0))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.cut] if allowed else b"")

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def storage():
    handler = type("Handler", (Bucket,), {"objects": {WHEEL: packed()}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def begin(storage, tmp_path):
    """Starts the script as a machine does when it boots, with attributes of metadata and variables."""
    started = []
    command = tmp_path / "shutdown"
    command.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/off\n')
    command.chmod(0o755)

    def run(attributes, variables=()) -> subprocess.Popen:
        metadata = Metadata("machine", attributes, token=TOKEN)
        own = {"PATH": os.environ["PATH"], "GCE_METADATA_HOST": metadata.address, "TPULLM_HOME": str(tmp_path / "home")}
        own |= {"STORAGE_EMULATOR_HOST": storage.address, "TPULLM_POWER_OFF": str(command)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command_line = ["sh", "-c", SCRIPT]
        process = subprocess.Popen(command_line, env=own | dict(variables), cwd=tmp_path, **pipes)
        started.append((process, metadata))
        return process

    yield run
    for process, metadata in started:
        process.kill()
        process.communicate()
        metadata.close()


@pytest.fixture
def boot(begin):
    def run(attributes, variables=()) -> subprocess.CompletedProcess:
        process = begin(attributes, variables)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    return run


def launched(storage, supervisor: str) -> dict[str, str]:
    storage.objects[WHEEL] = packed(supervisor)
    return TOLD | {"tpullm-sha256": hashlib.sha256(storage.objects[WHEEL]).hexdigest()}


def switched_off(tmp_path) -> list[str]:
    file = tmp_path / "off"
    return file.read_text().splitlines() if file.exists() else []


def reported(storage) -> dict:
    ((name, content),) = ((name, content) for name, content in storage.objects.items() if name != WHEEL)
    assert Path(name).match("a/run/launch/x/attempts/0003/ended/setup-*.json")
    return json.loads(content)


ARGUMENTS = ["--job", TOLD["tpullm-job"], "--attempt", "3", "--seconds"]


def arguments(done) -> list[str]:
    """What the supervisor was told, but for the time and its file."""
    assert done.returncode == 0, done.stderr
    *first, seconds, option, _ = json.loads(done.stdout)
    assert 7000 < int(seconds) <= 7200 and option == "--reported"
    return first


def test_the_code_is_fetched_once_with_the_machines_token_and_started(boot, storage):
    for _ in range(2):
        done = boot(TOLD)
        assert arguments(done) == ARGUMENTS
    assert storage.requests == [f"/storage/v1/b/b/o/{WHEEL.replace('/', '%2F').replace('+', '%2B')}?alt=media"]


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


@pytest.mark.parametrize("content", [packed()[:-10], packed("print('another program')")])
def test_a_wheel_that_is_not_the_launched_one_is_neither_started_nor_kept(boot, storage, tmp_path, content):
    """It may have been cut off where nobody saw it, or replaced by whoever may write to the bucket."""
    storage.objects[WHEEL] = content
    done = boot(TOLD)
    assert done.returncode == 1 and done.stdout == ""
    assert "is not the code that was launched (its SHA-256 differs); remove it and launch" in reported(storage)["line"]
    assert not list((tmp_path / "home").glob("*.whl*"))


ODD = ["a b", "a#b", "a?b=c&d", "100%", "%2F", "訓練", "it's", 'a"b', "$HOME `id` $(id)", "a\\b", "*", "-rf", "é+;|&!~"]


@pytest.mark.parametrize("batch, name", [(False, "".join(ODD)), (True, "".join(ODD)), (False, "-rf")])
def test_any_name_of_a_run_reaches_the_supervisor_and_the_bucket(boot, storage, tmp_path, batch, name):
    """By metadata, or by the variables of a Batch task; and a failure is reported there."""
    job, wheel = f"gs://b/{name}/launch/x/jobs/0123.json", f"{name}/launch/code/tpullm-1+abc-py3-none-any.whl"
    told = TOLD | {"tpullm-job": job, "tpullm-wheel": f"gs://b/{wheel}"}
    storage.objects |= {wheel: packed()}
    for broken in (False, True):
        told |= {"tpullm-python": "/no/such/python"} if broken else {}
        variables = {key.upper().replace("-", "_"): value for key, value in told.items()} if batch else {}
        done = boot({} if batch else told, variables)
        assert broken or json.loads(done.stdout)[:2] == ["--job", job], done.stderr
    (report,) = (name for name in storage.objects if "/ended/" in name)
    assert report.startswith(f"{name}/launch/x/attempts/0003/ended/setup-")


@pytest.mark.parametrize("ended, code", [(3, 3), (0, 1)])
def test_a_supervisor_that_ends_without_a_report_is_reported(boot, storage, tmp_path, ended, code):
    boot(launched(storage, f"import sys; sys.exit({ended})"))
    report = reported(storage)
    assert report["code"] == code and report["line"].endswith(f": exit code {ended}; its serial console has more")
    assert switched_off(tmp_path) == ["-h +120", "-h now"]


@pytest.mark.parametrize("code", [0, 75])
def test_a_machine_is_switched_off_when_its_work_is_over(boot, storage, tmp_path, code):
    done = boot(launched(storage, f"{SUPERVISOR}\nsys.exit({code})"))
    assert done.returncode == code and list(storage.objects) == [WHEEL], "the supervisor has reported"
    assert switched_off(tmp_path) == ["-h +120", "-h now"]


def test_a_machine_that_can_not_report_stays_for_an_hour(boot, storage, tmp_path):
    """Then `launch --watch` says what its account may lack."""
    storage.readonly = True
    assert boot(TOLD | {"tpullm-python": "/no/such/python"}).returncode == 1
    assert switched_off(tmp_path) == ["-h +120", "-h +70"]


@pytest.mark.parametrize("variables", [{"BATCH_TASK_INDEX": "0"}, {"TPULLM_POWER_OFF": ""}])
def test_a_machine_of_batch_is_not_switched_off_and_a_test_switches_nothing_off(boot, tmp_path, variables):
    guard = tmp_path / "bin"
    guard.mkdir()
    (guard / "shutdown").symlink_to(tmp_path / "shutdown")
    assert boot(TOLD, {"PATH": f"{guard}:{os.environ['PATH']}"} | variables).returncode == 0
    assert switched_off(tmp_path) == []


def test_after_a_reboot_a_machine_has_the_rest_of_its_hours(boot, tmp_path):
    (tmp_path / "home").mkdir()
    seen = []
    for began in (time.time() - 3600, time.time() + 3600, time.time() - 10000):  # a clock may have jumped
        (tmp_path / "home" / "began").write_text(f"{int(began)}\n")
        seen.append(int(json.loads(boot(TOLD).stdout)[-3]))
    assert 3500 < seen[0] <= 3600 and 7000 < seen[1] <= 7200 and 200 < seen[2] <= 300, "enough for a report"
    assert switched_off(tmp_path)[::2] == ["-h +60", "-h +120", "-h +5"]


WAITS = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[-1]).touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("here", flush=True)
time.sleep(100)
"""


def test_the_supervisor_hears_that_the_machine_is_stopped(begin, storage, tmp_path):
    assert stopped(begin(launched(storage, WAITS))) == 130 and list(storage.objects) == [WHEEL]
    assert switched_off(tmp_path) == ["-h +120", "-h now"]


DEAF = "import os, signal, time\nprint('here', flush=True)\ntime.sleep(100)\n"


@pytest.fixture
def slow_python(tmp_path) -> str:
    waiting = tmp_path / "python"
    waiting.write_text("#!/bin/sh\necho here\nsleep 2\n")
    waiting.chmod(0o755)
    return str(waiting)


def stopped(process) -> int:
    assert process.stdout.readline() == "here\n"
    process.terminate()
    return process.wait(60)


@pytest.mark.parametrize("supervisor", [DEAF, ""])
def test_a_machine_that_is_stopped_while_it_is_set_up_was_taken_back(begin, storage, slow_python, supervisor):
    """Another attempt may begin: that is no fault of the set-up."""
    told = launched(storage, supervisor) if supervisor else TOLD | {"tpullm-python": slow_python}
    assert stopped(begin(told)) == 75
    report = reported(storage)
    assert report["code"] == 75 and report["line"].endswith(": the machine was stopped")


@pytest.mark.parametrize("variables, off", [({}, 1), ({"BATCH_TASK_INDEX": "0"}, 0), ({"GCE_METADATA_HOST": "a:1"}, 0)])
def test_a_machine_of_google_is_switched_off_by_shutdown(tmp_path, variables, off):
    """The function by itself: only a real machine has no variable that names its metadata server."""
    (function,) = re.findall(r"^power_off\(\) \{.*?^\}$", SCRIPT, re.MULTILINE | re.DOTALL)
    command = tmp_path / "shutdown"
    command.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/off\n')
    command.chmod(0o755)
    script = f"set -eu\n{function}\npower_off now"
    subprocess.run(["/bin/sh", "-c", script], env={"PATH": str(tmp_path)} | variables, check=True)
    assert switched_off(tmp_path) == ["-h now"] * off
