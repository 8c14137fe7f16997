"""One process at a time works in a run directory, and on `gs://` one that is gone holds nobody up for long."""

import threading
import time

import pytest

from tpullm.cluster import lock
from tpullm.errors import TRY_AGAIN, UserError
from tpullm.storage import gcs as gs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A lease of seconds."""
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_RENEWALS", 0.2)
    monkeypatch.setattr(lock, "SECONDS_OF_A_LEASE", 3.0)
    monkeypatch.setattr(lock, "SECONDS_OF_ROUNDING", 1.0)


def test_on_a_disk_the_second_is_refused_at_once_and_comes_after(tmp_path):
    with lock.alone(tmp_path):
        with pytest.raises(UserError, match=f"{tmp_path}: another tpullm works in it; wait for it"):
            with lock.alone(tmp_path):
                pass
    with lock.alone(tmp_path):
        pass


def test_the_second_waits_with_a_line_and_is_refused_or_comes_after(bucket, capsys):
    with lock.alone(bucket):
        generation, said, _ = gs.read_with_age(bucket / ".lock")
        with pytest.raises(UserError, match=f"{bucket}: another tpullm works in it"), lock.alone(bucket):
            pass
        assert gs.read_with_age(bucket / ".lock")[0] > generation, "it was renewed"
        assert f"in use by {said['host']}, process {said['pid']}; waiting 3 s" in capsys.readouterr().err
    with lock.alone(bucket):
        assert (bucket / ".lock").exists()
    assert not (bucket / ".lock").exists()


def test_the_second_comes_in_as_soon_as_the_first_leaves(bucket, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_OF_A_LEASE", 60.0)
    first = lock.Lease(bucket / ".lock")
    first.take()
    threading.Timer(1.0, first.give_back).start()
    began = time.monotonic()
    with lock.alone(bucket):
        assert 0.9 < time.monotonic() - began < 60, "it waited for the lease to end"


def test_an_answer_that_was_lost_costs_nobody_the_lease(bucket):
    """The request is sent again, with the generation from before the first one."""
    lease, other = lock.Lease(bucket / ".lock"), lock.Lease(bucket / ".lock")
    first = lease._write(0)
    assert first and lease._write(0) == first
    assert other._write(0) is None
    assert lease._write(first) > first


def test_a_lease_that_is_not_renewed_is_taken_over(bucket):
    gs.write_if(bucket / ".lock", {"host": "elsewhere", "pid": 1, "process": "another", "id": "x"}, 0)
    began = time.monotonic()
    with lock.alone(bucket):
        assert 1.5 < time.monotonic() - began
        assert gs.read_with_age(bucket / ".lock")[1]["host"] != "elsewhere"


def test_of_a_process_of_this_machine_that_is_gone_nobody_waits(bucket, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_OF_A_LEASE", 60.0)
    said = {"host": lock.socket.gethostname(), "pid": 2**30, "process": lock._process(), "id": "x"}
    gs.write_if(bucket / ".lock", said, 0)
    began = time.monotonic()
    with lock.alone(bucket):
        assert time.monotonic() - began < 60


def test_who_was_away_too_long_stops(bucket, monkeypatch, capsys):
    ended, codes = threading.Event(), []

    def stop(code):
        codes.append(code)
        ended.set()
        threading.Event().wait()  # for ever, as nothing comes after the end of a process

    monkeypatch.setattr(lock.os, "_exit", stop)
    lease = lock.Lease(bucket / ".lock")
    lease.take()
    generation, _, _ = gs.read_with_age(bucket / ".lock")
    while not gs.write_if(bucket / ".lock", {"id": "another"}, generation):
        generation, _, _ = gs.read_with_age(bucket / ".lock")
    assert ended.wait(60) and codes == [TRY_AGAIN]
    assert f"tpullm: {bucket}: another tpullm works in it now" in capsys.readouterr().err
