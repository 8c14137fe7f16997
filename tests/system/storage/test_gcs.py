"""Requests to `gs://`: one writer wins, outages are waited for, and what the user must correct is one line.

Runs there have the same bits as on a disk, through outages, and ask nothing while steps go on.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from tests.conftest import ROOT
from tests.run.test_resume import assert_same_bits, metrics, wait_for_save
from tests.system.storage.conftest import names
from tpullm.cli.main import main
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError
from tpullm.system.storage import gcs as gs
from tpullm.training import programs


@pytest.fixture
def answers(monkeypatch):
    """A function that sets the next answers of the server: each has a status, the last is given again and again."""

    def set_answers(*codes: int, asked: list | None = None) -> list[int]:
        left = list(codes)

        def send(self, request, **_):
            answer = requests.Response()
            answer.status_code, answer.request, answer.url = left.pop(0) if left[1:] else left[0], request, request.url
            answer._content = b'{"error": {"message": "Bearer ya29.secret is not enough"}}'
            if asked is not None:
                asked.append(request.url)
            return answer

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
        return left

    monkeypatch.setattr(gs, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(gs.AnonymousCredentials, "refresh", lambda self, request: None)
    return set_answers


@pytest.fixture
def clock(monkeypatch):
    """Minutes that pass with each look at the clock."""
    now = SimpleNamespace(seconds=1000.0, pace=0.0)

    def monotonic():
        now.seconds += now.pace
        return now.seconds

    monkeypatch.setattr(gs, "time", SimpleNamespace(monotonic=monotonic, time=gs.time.time))
    monkeypatch.setattr(gs.connection(), "warned", -1e9)
    return now


def test_of_two_writers_with_one_generation_one_succeeds(bucket, answers):
    path = bucket / "object"
    first = gs.write_if(path, {"writer": 1}, 0)
    assert first and gs.write_if(path, {"writer": 2}, 0) is None
    second = gs.write_if(path, {"writer": 2}, first)
    assert second and gs.write_if(path, {"writer": 3}, first) is None
    generation, value, age = gs.read_with_age(path)
    assert (generation, value) == (second, {"writer": 2}) and abs(age) < 30
    for _ in range(2):
        gs.remove_if(path, second)
    assert gs.read_with_age(path) == (0, {}, 0.0)
    answers(412, asked=(asked := []))
    gs.remove_if(path, 17)  # somebody has written it since
    assert "ifGenerationMatch=17" in asked[0]


def test_an_age_is_by_the_clock_of_the_server(bucket, monkeypatch):
    """Its answers have a date. This machine's clock may be wrong."""
    gs.write_if(bucket / "object", {}, 0)
    written = (bucket / "object").stat().mtime
    gs.connection().clock = 0.0
    monkeypatch.setattr(gs.time, "time", lambda: 0.0)
    assert abs(gs.read_with_age(bucket / "object")[2] - (gs.connection().clock - written)) < 1e-3
    assert gs.connection().clock > written - 30


def test_an_outage_is_waited_for_and_a_long_one_is_one_line(bucket, storage_server, monkeypatch):
    storage.write_text(bucket / "a", "1")
    storage_server.kill()
    threading.Timer(0.5, storage_server.start).start()
    assert (bucket / "a").read_text() == "1"
    monkeypatch.setattr(gs, "PATIENCE_SECONDS", 0.5)
    storage_server.kill()
    with pytest.raises(TryAgain, match=f"{bucket}/a: the storage did not answer for 0 s .*the same command resumes"):
        (bucket / "a").read_text()
    monkeypatch.setattr(gs, "FIRST_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(gs.connection(), "reached", False)
    with pytest.raises(UserError, match=f"{bucket}/a: can't be reached .*refused.*; check this machine's network"):
        (bucket / "a").read_text()


def test_an_outage_is_one_line_for_all_requests(bucket, answers, clock, capsys):
    """For those that wait for its end; the next outage is told again."""
    clock.pace = 2.0
    for name in "abc":
        answers(*[503] * 9, 404)
        assert not (bucket / name).is_dir()
    line = f"{bucket}/a: the storage does not answer (503 Service Unavailable); it is asked again for 150 s\n"
    assert capsys.readouterr().err == line
    clock.seconds += gs.PATIENCE_SECONDS
    answers(*[503] * 9, 404)
    assert not (bucket / "a").is_dir()
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504, 401])
def test_what_may_pass_is_asked_again_in_every_kind_of_request(bucket, answers, clock, code, tmp_path, monkeypatch):
    """A token that worked before may be renewed (401)."""
    path = bucket / "a"
    (tmp_path / "file").write_text("1")
    monkeypatch.setattr(gs.connection(), "reached", True)
    monkeypatch.setattr(gs, "check_bucket", lambda target: None)
    writes = (lambda: path.write_text("1"), lambda: gs.upload(tmp_path / "file", path))
    reads = (path.stat, path.read_bytes, lambda: list(path.iterdir()), lambda: path.open("rb").read(1))
    for use in (*reads, path.unlink, *writes):
        left = answers(code, code, code, code, 404)
        with pytest.raises(FileNotFoundError):
            use()
        assert left == [404]


def test_a_bucket_that_is_not_there_is_told(bucket):
    elsewhere = storage.path(f"{bucket}-not")
    says = f"{elsewhere}: no such bucket; make it with `gcloud storage buckets create"
    for use in (storage.check_writable, lambda path: storage.write_text(path / "a", "")):
        with pytest.raises(UserError, match=says):
            use(elsewhere)


@pytest.mark.parametrize("code, says", [(401, "no valid credentials; run `gcloud"), (403, "permission denied; grant")])
def test_what_the_server_refuses_is_one_line_without_secrets(code, says, bucket, answers, monkeypatch):
    monkeypatch.setattr(gs.connection(), "reached", False)
    answers(code)
    file = bucket / "a"
    for use in (file.read_text, file.exists, lambda: names(bucket), lambda: storage.write_text(file, "")):
        with pytest.raises(UserError, match=f"{bucket}.*{says}") as told:
            use()
        assert "secret" not in str(told.value)


def test_without_credentials_the_line_says_how_to_log_in(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "not-there.json"))
    with pytest.raises(UserError, match="credentials are missing or expired; run `gcloud auth"):
        gs.connection.__wrapped__()


@pytest.fixture
def remote_tokens(tiny_run, bucket) -> Path:
    """A run of `tests/tiny.yaml` on `gs://` that is made up to its tokens."""
    remote = bucket / "runs" / "tiny"
    names = [str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()]
    made = [name for name in names if re.match("recipe|documents|tokenizer|tokens", name)]
    storage.remote().upload_all(tiny_run, remote, made)
    return remote


@pytest.mark.ci  # a short outage is above
def test_a_training_goes_on_through_an_outage_with_the_same_bits(tiny_run, remote_tokens, storage_server):
    """The server is away for 2 s in a training that saves every 5 of its 30 steps."""
    command = [sys.executable, "-m", "tpullm", "pretrain", "--run", str(remote_tokens)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_save(process, remote_tokens, 5)
    storage_server.kill()
    time.sleep(2)
    storage_server.start()
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert metrics(tiny_run / "pretrain") == metrics(remote_tokens / "pretrain")
    assert_same_bits(tiny_run / "pretrain", remote_tokens / "pretrain")
    assert not (remote_tokens / ".lock").exists()


@pytest.mark.ci
def test_while_steps_go_on_nothing_is_asked_of_the_storage(remote_tokens, storage_server, monkeypatch):
    """Between saves there are uploads of the log alone, and with the server away the steps go on as before."""
    seen, real = [], programs.put_rows

    def put(mesh, batch):
        seen.append(len(storage_server.log()))
        if len(seen) == 15:
            storage_server.kill()
        if len(seen) == 29:
            storage_server.start()
        return real(mesh, batch)

    monkeypatch.setattr(programs, "put_rows", put)
    options = ["--pretrain.checkpoint.every_steps=0", "--pretrain.evaluate_every=0", "--pretrain.log_every=1"]
    assert main(["pretrain", "--run", str(remote_tokens), *options]) == 0
    asked = storage_server.log()[seen[2] : seen[14]]
    assert not [line for line in asked if "POST /upload/" not in line and not re.search("tokens%2F.*alt=media", line)]
    assert [line["step"] for line in metrics(remote_tokens / "pretrain") if "loss" in line] == list(range(1, 31))
