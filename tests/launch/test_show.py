"""What a launch prints: the state of its attempts and machines, their cost, and the hosts' logs."""

import json

import pytest
import yaml

from tests.launch.conftest import job_of, make_job
from tpullm.hardware import machines
from tpullm.hardware.chips import PRICES_DATE
from tpullm.launch import show
from tpullm.launch.record import Attempt, HostExit, Outcome, Record
from tpullm.launch.watch import Resource, State
from tpullm.system import storage

JOB = make_job("gs://b/run", name="x")
LOST = Outcome(True, 75, "the machines were taken back", 1.0)
DONE = Outcome(False, 0, "finished", 2.0)


def attempt(number, outcome=None, starts=0, exits=()):
    return Attempt(number, "spec", 0.0, starts, exits, outcome)


def test_attempts_machines_and_their_cost_which_may_not_be_known():
    resources = [
        Resource("x-2", 2, State.ACTIVE, "hash", dollars_an_hour=1.5),
        Resource("x-1", 1, State.FAILED, "hash", "no quota", dollars_an_hour=0.25),
    ]
    attempts = [attempt(1, LOST), attempt(2, starts=3, exits=(HostExit(0, 0, ""),))]
    assert show.status(JOB, attempts, resources).splitlines() == [
        "x: 2 attempt(s); run directory gs://b/run",
        "  attempt 1: the machines were taken back",
        "  attempt 2: the verb was started 3 time(s), 1 host(s) have finished",
        "  x-2: active, 1.50 $/h",
        "  x-1: failed (no quota), 0.25 $/h",
        f"  now 1.75 $/h (list prices on demand of {PRICES_DATE}, cloud.google.com/tpu/pricing; spot costs less)",
    ]
    unknown = Resource("x-1", 1, State.ACTIVE, "hash", dollars_an_hour=None)
    lines = show.status(job_of("batch", "pretrain", machine="n2-standard-8"), [attempt(1)], [unknown]).splitlines()
    assert lines[1:] == [
        "  attempt 1: no host has started the verb yet",
        "  x-1: active, unknown cost",
        f"  now 0.00 $/h ({machines.PRICES})",
    ]


def test_the_status_tells_where_the_hours_of_a_training_went(tmp_path):
    """From the run directory, with no host's help; nothing before the first step."""
    job = make_job(str(tmp_path), name="x")
    assert show.trainings(job) == ""
    spent = {"process": 1.0, "resumed": 0, "step": 1200, "skipped": 0, "seconds": {"data": 10.0, "all": 100.0}}
    storage.write_text(tmp_path / "pretrain" / "hours.jsonl", json.dumps(spent) + "\n")
    assert show.trainings(job) == "  pretrain: step 1,200, goodput 90.0% (data 10.0%)\n"


def test_yaml_keeps_the_order_lines_and_long_commands():
    value = {"b": 1, "a": "two\nlines\n", "command": "word " * 100 + "é"}
    text = show.as_yaml(value)
    assert yaml.safe_load(text) == value and list(yaml.safe_load(text)) == ["b", "a", "command"]
    assert "a: |\n  two\n  lines\n" in text and len(text.splitlines()) == 5 and "é" in text


@pytest.fixture
def record(tmp_path):
    return Record(str(tmp_path))


def write(record, number, name, text):
    storage.write_text(record.attempt_folder(number) / "logs" / name, text)


def test_whole_lines_of_the_last_attempt_with_their_hosts(record):
    assert list(show.logs(record, False)) == []
    write(record, 1, "0000.0000.log", "of an earlier attempt\n")
    write(record, 2, "0000.0000.log", "a\nb\n")
    write(record, 2, "0000.0001.log", "c\n")
    write(record, 2, "0012.0000.log", "d\nnot whole y")
    assert list(show.logs(record, False)) == ["[0] a", "[0] b", "[0] c", "[12] d"]


def test_new_lines_come_once_until_the_attempt_is_final(record, monkeypatch):
    changes = [
        lambda: write(record, 1, "0000.0000.log", "a\nb"),
        lambda: write(record, 1, "0000.0000.log", "a\nb\nc\n"),
        lambda: (record.conclude(1, LOST), write(record, 2, "0000.0000.log", "d\n")),
        lambda: (record.conclude(2, DONE), write(record, 2, "0000.0000.log", "d\ne\n")),
    ]
    monkeypatch.setattr(show.time, "sleep", lambda seconds: changes.pop(0)())
    assert list(show.logs(record, True)) == ["[0] a", "[0] b", "[0] c", "[0] d", "[0] e"] and changes == []
