"""The verb `launch`: user errors, what it uploads, when it starts an attempt, what it prints, and how it stops one."""

import json
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import TINY
from tests.launch.conftest import make_job
from tests.launch.test_watch import Service
from tpullm.cli import launch
from tpullm.cli.main import main
from tpullm.launch import code, google_api, show, tpu_vm, watch
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


def test_the_code_and_the_specification_are_uploaded_once_and_what_is_left_out_is_named(job, monkeypatch, capsys):
    launch.upload_launch(job)
    wheel, spec = storage.path(job.wheel), storage.path(job.spec_path)
    assert wheel.read_bytes() == code.wheel().content and wheel.name == code.wheel().name
    assert storage.read_json(spec) == job.spec()
    wheel.write_bytes(b"there")
    launch.upload_launch(job)
    assert wheel.read_bytes() == b"there"
    monkeypatch.setattr(code, "left_out", lambda: ["tpullm/new.py"])
    launch.upload_launch(job)
    line = "code: tpullm/new.py is not tracked by git, so machines do not get it; `git add` it if they need it"
    assert line in capsys.readouterr().err


def test_a_launch_starts_an_attempt_and_says_what_it_may_cost_and_what_to_do_next(job, service, capsys):
    assert start(job, service) == 0
    assert service.done == ["create 1"] and storage.path(job.wheel).exists()
    assert "x: launched; the same command with --watch replaces lost machines" in capsys.readouterr().err
    assert start(job, service) == 0 and service.done == ["create 1"], "it is there"
    # By a launch, and by a dry run above its YAML.
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


RUN = ["--", "pretrain", "--config", str(TINY), "--run", "gs://b-u-c-k-e-t/run"]
TPU = ["launch", "tpu-vm", "--project", "p", "--zone", "us-west4-a", "--accelerator", "v5litepod-16"]


def told(capsys, *argv) -> str:
    assert main([str(word) for word in argv]) == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1 and said.startswith("tpullm: "), said
    return said


@pytest.mark.parametrize(
    "argv, says",
    [
        (["launch", "tpu-vm", *RUN], "project: is needed to launch on tpu-vm; give --project"),
        (["launch", "tpu-vm", "--project=p", *RUN], "zone: is needed"),
        ([*TPU, "--zone=us-west4", *RUN], "zone: us-west4 is not a zone, such as us-west4-a"),
        ([*TPU, "--accelerator=v5e-16", *RUN], "accelerator: there is no v5e-16; use v5litepod-16\n"),
        ([*TPU, "--accelerator=v5litepod-12", *RUN], "use v5litepod-8 or v5litepod-16"),
        ([*TPU, "--accelerator=h100", *RUN], "accelerator: there is no h100; use v"),
        ([*TPU, *RUN, "--mesh.tensor", "3"], "mesh: {fsdp: -1, tensor: 3} needs a multiple of 3 and does not fit 16"),
        ([*TPU, "--slices=2", *RUN, "--mesh", "{fsdp: 5}"], "does not fit 32 device(s)"),
        ([*TPU, "--name=Mine_2", *RUN], "name: Mine_2 can't name resources"),
        ([*TPU, "--provisioning=reserved", *RUN], "reservation: goes with provisioning: reserved"),
        ([*TPU, "--acelerator=x", *RUN], "unknown key acelerator; the nearest is accelerator"),
        ([*TPU, "--provisioning=cheap", *RUN], "provisioning"),
        (["launch", "tpu-wm", *RUN], "tpu-wm"),
        (["launch", "tpu-vm", "begin", *RUN], "begin"),
        (
            ["launch", "tpu-vm", "pretrain", "a.yaml"],
            "launch: a verb stands after --, such as: tpu-vm -- pretrain a.yaml",
        ),
        (TPU, "launch: what is to run? Give a verb after --"),
        ([*TPU, "--", "chat", "--model", "m"], "chat: is not a verb that can be distributed; those are run, pretrain"),
        ([*TPU, "--", "collect", *RUN[2:]], "collect: needs no TPU, and would leave one idle; launch it on batch"),
        ([*TPU, *RUN, "--hosts.count", "2"], "--hosts.*: launch gives them to each process"),
        ([*TPU, *RUN, "--pretrain.stepz", "2"], "unknown key pretrain.stepz; the nearest is pretrain.steps"),
        ([*TPU, *RUN[:-1], "runs/here"], "is on this machine; give --run gs://BUCKET/FOLDER"),
        ([*TPU, "--", "run", *RUN[2:], "--text", "novels"], "text: novels is on this machine; copy it to gs://"),
        (["launch", "local", "status", *RUN], "status: a local launch is over when its command is"),
        (["launch", "local", "--processes=0", *RUN], "processes: 0 is too small; use 1 or more"),
        (["launch", "local", "--devices=-1", *RUN], "devices: -1 is too small; use 0 or more"),
        *(([*TPU, f"--max_hours={hours}", *RUN], "max_hours: ") for hours in ("0.09", "336.1", ".inf", ".nan")),
        *(([*TPU, f"--zone={zone}", *RUN], "is not a zone") for zone in ("us-west4-ab", "west4-a", "us-west4-")),
        ([*TPU, "--reservation=mine", *RUN], "reservation: goes with provisioning: reserved; give both or none"),
        *(
            (["launch", target, "--environment", f"{{{json.dumps(name)}: x}}", *RUN], "environment: ")
            for target in ("slurm", "batch")
            for name in ("A$(touch x)", "A B", "1A", "A\nB", "", "Ａ")
        ),
        *(
            (["launch", "slurm", "--sbatch", json.dumps([option]), *RUN], "sbatch: ")
            for option in ("--mem=1\ntouch x", "--mem=1\rtouch x", "touch x", "")
        ),
    ],
)
def test_user_errors_are_found_without_a_network(capsys, argv, says):
    assert says in told(capsys, *argv)


@pytest.fixture
def ready(bucket, tpu):
    return [*TPU, "--", "pretrain", "--config", TINY, "--run", bucket / "run"]


def test_an_unwritable_bucket_is_refused_before_anything_is_created(capsys, ready, tpu):
    line = told(capsys, *ready[:-1], "gs://no-such-bucket/run")
    assert "gs://no-such-bucket" in line and "no such bucket" in line and tpu.resources == {}


def test_without_credentials_and_without_the_client_libraries(capsys, ready, monkeypatch, tmp_path):
    monkeypatch.delenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    google_api._http_session.cache_clear()
    assert "Google credentials: there are none on this machine; run `gcloud auth" in told(capsys, *ready)
    google_api._http_session.cache_clear()
    monkeypatch.setitem(sys.modules, "google.auth", None)
    assert "Google's client libraries are not installed; run: pip install 'tpullm[gcp]'" in told(capsys, *ready)


def test_a_launch_is_repeated_inspected_and_stopped(capsys, ready, tpu):
    """Without --watch: repeated launches create one resource; status tells its state and cost; stop leaves nothing."""
    words = [*map(str, ready)]
    assert main([*words[:2], "status", *words[2:]]) == 0 and "not launched yet" in capsys.readouterr().out
    assert main(words) == 0 and main(words) == 0
    assert tpu.counts == {"POST tiny-pretrain-1": 1}
    capsys.readouterr()
    assert main([*words[:2], "status", *words[2:]]) == 0
    said = capsys.readouterr().out
    assert "tiny-pretrain: 1 attempt(s)" in said and "19.20 $/h" in said, said
    assert "attempt 1: no host has started the verb yet" in said
    assert main([*words[:2], "logs", *words[2:]]) == 0
    assert "no host has sent a line" in capsys.readouterr().err
    assert main([*words[:2], "stop", *words[2:]]) == 0 and tpu.resources == {}
    assert capsys.readouterr().err.count("deleting") == 1, "said once, however long it takes"
    assert main([*words[:2], "stop", *words[2:]]) == 0
    capsys.readouterr()
    assert main([*words[:2], "status", *words[2:]]) == 0
    assert "attempt 1: stopped" in (said := capsys.readouterr().out) and "nothing is left that costs" in said
    assert main(words) == 0 and "tiny-pretrain-2" in tpu.resources, "launched again, it is another attempt"
