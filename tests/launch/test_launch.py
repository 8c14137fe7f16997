"""The verb `launch`: what it uploads, when it starts an attempt, what it prints, and how it stops one."""

from types import SimpleNamespace

import pytest

from tests.launch.conftest import make_job
from tests.launch.test_loop import Service
from tpullm.cli import launch
from tpullm.launch import code, show, tpu_vm, watch
from tpullm.launch.record import Outcome, Record
from tpullm.launch.watch import Resource, State
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path / "run", name="x")


@pytest.fixture
def service(job, monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
    return Service(job)


def start(job, service, watching=False):
    return launch._start_launch(job, service, SimpleNamespace(watch=watching))


def test_the_code_and_the_specification_are_uploaded_once(job, monkeypatch):
    launch.upload_launch(job)
    wheel, spec = storage.path(job.wheel), storage.path(job.spec_path)
    assert wheel.read_bytes() == code.wheel().content and wheel.name == code.wheel().name
    assert storage.read_json(spec) == job.spec()
    wheel.write_bytes(b"there")
    launch.upload_launch(job)
    assert wheel.read_bytes() == b"there"


def test_a_module_that_machines_would_lack_is_named(job, monkeypatch, capsys):
    monkeypatch.setattr(code, "left_out", lambda: ["tpullm/new.py"])
    launch.upload_launch(job)
    line = "code: tpullm/new.py is not tracked by git, so machines do not get it; `git add` it if they need it"
    assert line in capsys.readouterr().err


def test_a_launch_starts_an_attempt_and_says_what_to_do_next(job, service, capsys):
    assert start(job, service) == 0
    assert service.done == ["create 1"] and storage.path(job.wheel).exists()
    assert "x: launched; the same command with --watch replaces lost machines" in capsys.readouterr().err
    assert start(job, service) == 0 and service.done == ["create 1"], "it is there"


def test_what_the_machines_may_do_and_cost_is_said(job, service, capsys):
    """By a launch, and by a dry run above its YAML."""
    start(job, service)
    said = capsys.readouterr().err
    assert all(f"x: {line}" in said for line in show.terms(job))
    printed = show.dry_run(job, tpu_vm)
    assert printed.splitlines()[1:3] == [f"# {line}" for line in show.terms(job)]


def test_a_finished_run_is_finished_but_other_settings_are_another_attempt(job, service, capsys):
    record = Record(job.folder)
    record.begin(1, job.spec_path)
    record.conclude(1, Outcome(False, 0, "finished", 0.0))
    assert start(job, service) == 0 and service.done == []
    said = capsys.readouterr().err
    assert "x: finished in attempt 1" in said and "launched" not in said
    other = make_job(job.run, name="x", environment={"A": "1"})
    assert start(other, service) == 0 and service.done == ["create 2"]


def test_other_settings_of_a_run_that_is_under_way_are_refused(job, service):
    start(job, service)
    with pytest.raises(UserError, match="x: is running with other settings"):
        start(make_job(job.run, name="x", environment={"A": "1"}), service)
    assert service.done == ["create 1"]


def test_a_name_of_another_run_is_refused_before_anything_is_written(job, service):
    service.resources.append(Resource("x-1", 1, State.ACTIVE, "another"))
    with pytest.raises(UserError, match="used by another run"):
        start(job, service)
    assert not storage.path(job.wheel).exists() and service.done == []


@pytest.mark.parametrize("outcome", [None, Outcome(True, 75, "lost", 0.0)])
def test_a_stopped_launch_is_not_tried_again(job, service, outcome, capsys):
    record = Record(job.folder)
    start(job, service)
    if outcome:
        record.conclude(1, outcome)
    service.answers += [None, TryAgain("away")]
    assert launch._stop_launch(job, service, None) == 0
    (attempt,) = record.attempts()
    assert (attempt.outcome.retry, attempt.outcome.code, attempt.outcome.reason) == (False, 130, "stopped")
    said = capsys.readouterr().err
    assert service.resources == [] and said.count("x: deleting x-1") == 1
    assert f"x: stopped; nothing is left that costs, and {job.run} is as it was" in said


def test_stopping_what_has_ended_keeps_its_outcome(job, service):
    record = Record(job.folder)
    assert launch._stop_launch(job, service, None) == 0 and record.attempts() == []
    record.begin(1, job.spec_path)
    record.conclude(1, Outcome(False, 0, "finished", 0.0))
    launch._stop_launch(job, service, None)
    assert record.attempts()[0].outcome.reason == "finished"


def test_logs_are_printed_and_their_absence_is_told(job, service, capsys):
    arguments = SimpleNamespace(follow=False)
    launch._show_logs(job, service, arguments)
    assert "x: no host has sent a line" in capsys.readouterr().err
    storage.write_text(Record(job.folder).attempt_folder(1) / "logs" / "0002.0000.log", "a line\n")
    launch._show_logs(job, service, arguments)
    assert capsys.readouterr() == ("[2] a line\n", "")
