"""Requests to `gs://`: one writer wins, outages are waited for, and what the user must correct is one line."""

import threading
from types import SimpleNamespace

import pytest
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from tests.system.storage.conftest import names
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError
from tpullm.system.storage import gcs as gs


def test_of_two_writers_with_one_generation_one_succeeds(bucket):
    path = bucket / "object"
    first = gs.write_if(path, {"writer": 1}, 0)
    assert first and gs.write_if(path, {"writer": 2}, 0) is None
    second = gs.write_if(path, {"writer": 2}, first)
    assert second and gs.write_if(path, {"writer": 3}, first) is None
    generation, value, age = gs.read_with_age(path)
    assert (generation, value) == (second, {"writer": 2}) and abs(age) < 30


def test_an_outage_is_waited_for_and_a_long_one_is_one_line(bucket, storage_server, monkeypatch):
    storage.write_text(bucket / "a", "1")
    storage_server.kill()
    threading.Timer(0.5, storage_server.start).start()
    assert (bucket / "a").read_text() == "1"
    monkeypatch.setattr(gs, "PATIENCE_SECONDS", 1.0)
    storage_server.kill()
    with pytest.raises(TryAgain, match=f"{bucket}/a: the storage did not answer for 1 s .*the same command resumes"):
        (bucket / "a").read_text()


def test_an_outage_is_one_line_for_all_requests(bucket, monkeypatch, capsys):
    """For those that wait for its end; the next outage is told again."""
    failed, now = {}, [1000.0]

    async def busy(self, method, path, *args, **options):
        failed[args] = failed.get(args, 0) + 1
        if failed[args] <= 9:
            raise HttpError({"code": 503, "message": "busy"})
        return 200, {}, None, b"{}"

    async def sleep(seconds):
        now[0] += seconds

    busy.__wrapped__ = busy
    monkeypatch.setattr(GCSFileSystem, "_request", busy)
    monkeypatch.setattr(gs.filesystem(), "_warned", -1e9)
    monkeypatch.setattr(gs.filesystem(), "_reached", True)
    monkeypatch.setattr(gs, "asyncio", SimpleNamespace(sleep=sleep, TimeoutError=TimeoutError))
    monkeypatch.setattr(gs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for name in "abc":
        gs.filesystem().call("GET", "b/{}/o/{}", bucket.name, name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{bucket}/a: the storage does not answer (busy, 503); it is asked again for 150 s"
    now[0] += gs.PATIENCE_SECONDS
    gs.filesystem().call("GET", "b/{}/o/{}", bucket.name, "d")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bucket_that_is_not_there_is_told(bucket):
    elsewhere = storage.path(f"{bucket}-not")
    for use in (storage.check_writable, lambda path: storage.write_text(path / "a", "")):
        with pytest.raises(
            UserError, match=f"{elsewhere}: no such bucket; make it with `gcloud storage buckets create"
        ):
            use(elsewhere)


@pytest.mark.parametrize(
    "code, says", [(401, "no valid credentials; run `gcloud auth"), (403, "permission denied; grant")]
)
def test_what_the_server_refuses_is_one_line_without_secrets(code, says, bucket, monkeypatch):
    from gcsfs.retry import validate_response

    async def refused(self, method, path, *args, **options):
        validate_response(code, b'{"error": {"message": "Bearer ya29.secret is not enough"}}', path, args)

    refused.__wrapped__ = refused
    monkeypatch.setattr(gs.filesystem(), "_reached", False)
    monkeypatch.setattr(GCSFileSystem, "_request", refused)
    for use in (lambda: storage.read_json(bucket / "a"), lambda: (bucket / "a").exists(), lambda: names(bucket)):
        with pytest.raises(UserError, match=f"{bucket}.*{says}") as told:
            use()
        assert "secret" not in str(told.value)
