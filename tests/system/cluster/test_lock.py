"""One process at a time works in a run directory, and on `gs://` one that is gone holds nobody up for long."""

import threading
import time

import pytest

from tpullm.run import directory
from tpullm.system.errors import TRY_AGAIN, UserError
from tpullm.system.storage import gcs as gs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(directory, "SECONDS_BETWEEN_RENEWALS", 0.2)
    monkeypatch.setattr(directory, "SECONDS_OF_A_LEASE", 3.0)
    monkeypatch.setattr(directory, "SECONDS_OF_ROUNDING", 1.0)


def test_the_second_waits_with_a_line_and_is_refused_or_comes_after(bucket, capsys):
    with directory.alone(bucket):
        generation, said, _ = gs.read_with_age(bucket / ".lock")
        with pytest.raises(UserError, match=f"{bucket}: another tpullm works in it"), directory.alone(bucket):
            pass
        assert gs.read_with_age(bucket / ".lock")[0] > generation, "it was renewed"
        assert f"in use by {said['host']}, process {said['pid']}; waiting 3 s" in capsys.readouterr().err
    with directory.alone(bucket):
        assert (bucket / ".lock").exists()
    assert not (bucket / ".lock").exists()


def test_the_second_comes_in_as_soon_as_the_first_leaves(bucket, monkeypatch):
    monkeypatch.setattr(directory, "SECONDS_OF_A_LEASE", 60.0)
    first = directory.Lease(bucket / ".lock")
    first.take()
    threading.Timer(1.0, first.give_back).start()
    began = time.monotonic()
    with directory.alone(bucket):
        assert 0.9 < time.monotonic() - began < 60, "it waited for the lease to end"


def test_an_answer_that_was_lost_costs_nobody_the_lease(bucket):
    """The request is sent again, with the generation from before the first one."""
    lease, other = directory.Lease(bucket / ".lock"), directory.Lease(bucket / ".lock")
    first = lease._write(0)
    assert first and lease._write(0) == first
    assert other._write(0) is None
    assert lease._write(first) > first


@pytest.mark.parametrize("is_here", [False, True])
def test_a_lease_that_is_not_renewed_is_taken_over(bucket, monkeypatch, is_here):
    """At once if its process was one of this machine, and is gone."""
    said = {"host": "elsewhere", "pid": 1, "process": "another", "id": "x"}
    if is_here:
        monkeypatch.setattr(directory, "SECONDS_OF_A_LEASE", 60.0)
        said |= {"host": directory.socket.gethostname(), "pid": 2**30, "process": directory._boot_and_namespace()}
    gs.write_if(bucket / ".lock", said, 0)
    began = time.monotonic()
    with directory.alone(bucket):
        assert time.monotonic() - began < 60 if is_here else 1.5 < time.monotonic() - began
        assert gs.read_with_age(bucket / ".lock")[1]["id"] != "x"


def test_who_was_away_too_long_stops(bucket, monkeypatch, capsys):
    ended, codes = threading.Event(), []

    def stop(code):
        codes.append(code)
        ended.set()
        threading.Event().wait()  # for ever, as nothing comes after the end of a process

    monkeypatch.setattr(directory.os, "_exit", stop)
    lease = directory.Lease(bucket / ".lock")
    lease.take()
    generation, _, _ = gs.read_with_age(bucket / ".lock")
    while not gs.write_if(bucket / ".lock", {"id": "another"}, generation):
        generation, _, _ = gs.read_with_age(bucket / ".lock")
    assert ended.wait(60) and codes == [TRY_AGAIN]
    assert f"tpullm: {bucket}: another tpullm works in it now" in capsys.readouterr().err
