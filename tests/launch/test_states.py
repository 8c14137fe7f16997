"""How each service's answer is read: the state of an attempt, why it failed, whether it would again, and its cost."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from google.cloud import batch_v1, tpu_v2

from tests.launch.conftest import job_of, make_job
from tpullm.hardware import machines
from tpullm.launch import google_api, google_batch, tpu_vm
from tpullm.launch.watch import State

TPU = make_job("gs://b/run", slices=2)
SLICE_DOLLARS = machines.find_slice("v5litepod-16").dollars_an_hour


def queued(state, error=None, kind="v5litepod-16"):
    node = {"acceleratorType": kind, "labels": {"tpullm-run": "hash"}} if kind else {}
    found = {"state": state} | ({"failedData": {"error": error}} if error else {})
    return {"name": "p/tiny-pretrain-2", "tpu": {"nodeSpec": [{"node": node}]}, "state": found}


def test_each_state_of_an_api_is_known():
    apis = {tpu_vm: tpu_v2.QueuedResourceState.State, google_batch: batch_v1.JobStatus.State}
    for target, states in apis.items():
        assert set(target.STATES) == set(states.__members__) - {"STATE_UNSPECIFIED"}


def test_what_is_known_of_a_queued_resource():
    seen = tpu_vm._queued_slice_resource(TPU, 2, queued("ACTIVE"))
    assert (seen.name, seen.attempt, seen.state, seen.run) == ("p/tiny-pretrain-2", 2, State.ACTIVE, "hash")
    costs = [word for word in tpu_vm.STATES if tpu_vm._queued_slice_resource(TPU, 2, queued(word)).dollars_an_hour]
    assert tpu_vm._queued_slice_resource(TPU, 2, queued("SUSPENDED")).state is State.PREEMPTED
    assert tpu_vm._queued_slice_resource(TPU, 2, queued("DELETING")).state is State.DELETING
    assert costs == ["PROVISIONING", "ACTIVE"] and seen.dollars_an_hour == 2 * SLICE_DOLLARS and not seen.permanent
    seen = tpu_vm._queued_slice_resource(TPU, 1, {"name": "x"})
    assert (seen.state, seen.run, seen.reason) == (State.WAITING, "", "")
    assert tpu_vm._queued_slice_resource(TPU, 1, queued("ACTIVE", kind="")).dollars_an_hour is None
    assert tpu_vm._queued_slice_resource(TPU, 1, queued("ACTIVE", kind="v99-8")).dollars_an_hour is None
    quota = {"code": 8, "message": "Quota exceeded"}
    seen = tpu_vm._queued_slice_resource(TPU, 1, queued("FAILED", quota))
    assert (seen.reason, seen.permanent) == ("Quota exceeded", True)
    assert not tpu_vm._queued_slice_resource(TPU, 1, queued("FAILED", {"code": 8, "message": "no capacity"})).permanent
    assert not tpu_vm._queued_slice_resource(TPU, 1, queued("SUSPENDED", quota)).permanent, "it had its machines"


BATCH = job_of("batch", "collect", machine="n2-standard-8", nodes=4)


@pytest.fixture
def tasks(monkeypatch):
    """The tasks that the API lists: a list to fill; each is its events, or its events and a state."""
    shown = []

    def listed(parent):
        assert parent == "p/tiny-collect-2/taskGroups/group0"
        states = [each if isinstance(each, tuple) else (each, "FAILED") for each in shown]
        return [{"status": {"state": state, "statusEvents": events}} for events, state in states]

    monkeypatch.setattr(google_batch, "TASKS", SimpleNamespace(list=listed))
    return shown


def ended(code, words="Task failed", second=0):
    at = f"2026-01-01T00:00:{second:02d}Z"
    execution = {"exitCode": code} if code else {}
    return {"type": "STATUS_CHANGED", "description": words, "eventTime": at, "taskExecution": execution}


def batch_job(state, events=(), **counts):
    groups = {"group0": {"counts": {name: str(count) for name, count in counts.items()}}}
    status = {"state": state, "statusEvents": list(events), "taskGroups": groups}
    return {"name": "p/tiny-collect-2", "labels": {"tpullm-run": "hash"}, "status": status}


def test_each_task_at_work_is_a_machine_that_costs_as_long_as_the_job_runs(tasks):
    counts = {"ASSIGNED": 1, "RUNNING": 2, "SUCCEEDED": 5, "PENDING": 7}
    seen = google_batch._batch_job_resource(BATCH, 2, batch_job("RUNNING", **counts))
    assert (seen.name, seen.attempt, seen.state, seen.run) == ("p/tiny-collect-2", 2, State.ACTIVE, "hash")
    assert seen.dollars_an_hour == pytest.approx(3 * machines.find("n2-standard-8").dollars_an_hour)
    ended = google_batch._batch_job_resource(BATCH, 2, batch_job("FAILED", **counts))
    assert ended.dollars_an_hour == 0 and not ended.permanent, "no task ended, so nothing says that it would again"


@pytest.mark.parametrize(
    "codes, state, permanent",
    [
        ([2], State.FAILED, True),
        ([50001, 2], State.FAILED, True),
        ([2, 50001], State.PREEMPTED, False),
        ([0, 75], State.PREEMPTED, False),
        ([130, 0], State.PREEMPTED, False),
        ([50005], State.PREEMPTED, False),  # `maxRunDuration` is over
        ([124], State.PREEMPTED, False),  # so says the supervisor, before it is
        ([0], State.FAILED, False),
    ],
)
def test_why_a_batch_job_failed(tasks, codes, state, permanent):
    """The last exit code of a task that is not 0 decides: Batch gave up after it."""
    tasks.append([ended(code, f"exit {code}") for code in codes])
    seen = google_batch._batch_job_resource(BATCH, 1, batch_job("FAILED"))
    assert (seen.state, seen.permanent) == (state, permanent)


def test_the_task_that_failed_first_is_the_cause(tasks, monkeypatch):
    """Batch stops the others, which then end too; a task that has not failed says nothing."""
    tasks += [[ended(143, "stopped", 9)], [ended(9, "cause", 3), ended(2, "the cause", 5)], [ended(1, "stopped", 8)]]
    tasks.append(([ended(50001, "taken back, and restarted", 1)], "SUCCEEDED"))
    seen = google_batch._batch_job_resource(BATCH, 1, batch_job("FAILED"))
    assert (seen.reason, seen.permanent) == ("the cause", True)
    fraction = ended(50001, "earlier")
    fraction["eventTime"] = "2026-01-01T00:00:03.999Z"
    tasks.append([fraction])
    assert google_batch._batch_job_resource(BATCH, 1, batch_job("FAILED")).state is State.PREEMPTED

    gone = Mock(side_effect=google_api.Missing("no such job"))
    monkeypatch.setattr(google_batch, "TASKS", SimpleNamespace(list=gone))
    assert google_batch._batch_job_resource(BATCH, 1, batch_job("FAILED")).state is State.FAILED


def test_the_reason_of_a_batch_job_is_the_last_event_that_has_one(tasks):
    changed = {"type": "STATUS_CHANGED", "description": "Job state is set"}
    info = {"type": "OPERATIONAL_INFO", "description": "no\n  machines"}
    for state, events, reason in (
        ("FAILED", [info, changed], "Job state is set"),
        ("FAILED", [], ""),
        ("QUEUED", [changed, info, changed], "no machines"),
        ("SCHEDULED", [info, changed], "no machines"),
        ("QUEUED", [changed], ""),
        ("RUNNING", [info, changed], ""),
        ("SUCCEEDED", [info], ""),
    ):
        assert google_batch._batch_job_resource(BATCH, 1, batch_job(state, events)).reason == reason, (state, events)
