"""How each service's answer is read: the state of an attempt, why it failed, whether it would again, and its cost."""

import pytest

from tests.launchers.conftest import job_of, make_job
from tpullm.errors import TryAgain, UserError
from tpullm.hardware import accelerators, machines
from tpullm.launchers import compute_engine, compute_engine_api, google_api, google_batch, tpu_vm
from tpullm.launchers.compute_engine_api import GROUP, POLICY, TEMPLATE, Scope
from tpullm.launchers.target import State

TPU = make_job("gs://b/run", slices=2)
SLICE_DOLLARS = accelerators.find("v5litepod-16").dollars_an_hour


def queued(state, error=None, kind="v5litepod-16"):
    """A queued resource as the API shows it."""
    node = {"acceleratorType": kind, "labels": {"tpullm-run": "hash"}} if kind else {}
    found = {"state": state} | ({"failedData": {"error": error}} if error else {})
    return {"name": "p/tiny-pretrain-2", "tpu": {"nodeSpec": [{"node": node}]}, "state": found}


@pytest.mark.parametrize(
    "word, state, costs",
    [
        ("CREATING", State.WAITING, False),
        ("ACCEPTED", State.WAITING, False),
        ("WAITING_FOR_RESOURCES", State.WAITING, False),
        ("PROVISIONING", State.PROVISIONING, True),
        ("ACTIVE", State.ACTIVE, True),
        ("SUSPENDING", State.PREEMPTED, False),
        ("SUSPENDED", State.PREEMPTED, False),
        ("FAILED", State.FAILED, False),
        ("DELETING", State.DELETING, False),
    ],
)
def test_a_queued_resource(word, state, costs):
    seen = tpu_vm._resource(TPU, 2, queued(word))
    assert (seen.name, seen.attempt, seen.state, seen.run) == ("p/tiny-pretrain-2", 2, state, "hash")
    assert seen.dollars_an_hour == (2 * SLICE_DOLLARS if costs else 0.0) and not seen.permanent


def test_a_queued_resource_of_which_little_is_known():
    seen = tpu_vm._resource(TPU, 1, {"name": "x"})
    assert (seen.state, seen.run, seen.reason) == (State.WAITING, "", "")
    assert tpu_vm._resource(TPU, 1, queued("ACTIVE", kind="")).dollars_an_hour is None
    assert tpu_vm._resource(TPU, 1, queued("ACTIVE", kind="v99-8")).dollars_an_hour is None


def test_why_a_queued_resource_failed():
    quota = {"code": 8, "message": "Quota exceeded"}
    seen = tpu_vm._resource(TPU, 1, queued("FAILED", quota))
    assert (seen.reason, seen.permanent) == ("Quota exceeded", True)
    assert not tpu_vm._resource(TPU, 1, queued("FAILED", {"code": 8, "message": "no capacity"})).permanent
    assert not tpu_vm._resource(TPU, 1, queued("SUSPENDED", quota)).permanent, "it had its machines"


BATCH = job_of("batch", "collect", machine="n2-standard-8", nodes=4)


def ended(code, words="Task failed"):
    return {"type": "STATUS_CHANGED", "description": words, "taskExecution": {"exitCode": code}}


def batch_job(state, events=(), **counts):
    """A Batch job as the API shows it."""
    groups = {"group0": {"counts": {name: str(count) for name, count in counts.items()}}}
    status = {"state": state, "statusEvents": list(events), "taskGroups": groups}
    return {"name": "p/tiny-collect-2", "labels": {"tpullm-run": "hash"}, "status": status}


@pytest.mark.parametrize(
    "word, state",
    [
        ("QUEUED", State.WAITING),
        ("SCHEDULED", State.PROVISIONING),
        ("RUNNING", State.ACTIVE),
        ("SUCCEEDED", State.DONE),
        ("FAILED", State.FAILED),
        ("CANCELLATION_IN_PROGRESS", State.FAILED),
        ("CANCELLED", State.FAILED),
        ("DELETION_IN_PROGRESS", State.DELETING),
    ],
)
def test_a_batch_job(word, state):
    """Each task at work is a machine that costs, as long as the job runs."""
    seen = google_batch._resource(BATCH, 2, batch_job(word, ASSIGNED=1, RUNNING=2, SUCCEEDED=5, PENDING=7))
    assert (seen.name, seen.attempt, seen.state, seen.run) == ("p/tiny-collect-2", 2, state, "hash")
    dollars = machines.find("n2-standard-8").dollars_an_hour
    assert seen.dollars_an_hour == (pytest.approx(3 * dollars) if state is State.ACTIVE else 0.0)
    assert not seen.permanent, "no task ended, so nothing says that it would again"


@pytest.mark.parametrize(
    "codes, state, permanent",
    [
        ([2], State.FAILED, True),
        ([50001, 2], State.FAILED, True),
        ([2, 50001], State.PREEMPTED, False),
        ([0, 75], State.PREEMPTED, False),
        ([130, 0], State.PREEMPTED, False),
        ([0], State.FAILED, False),
    ],
)
def test_why_a_batch_job_failed(codes, state, permanent):
    """The last exit code that is not 0 decides: Batch gave up after it."""
    seen = google_batch._resource(BATCH, 1, batch_job("FAILED", [ended(code, f"exit {code}") for code in codes]))
    assert (seen.state, seen.permanent) == (state, permanent)


def test_the_reason_of_a_batch_job_is_the_last_event_that_has_one():
    changed = {"type": "STATUS_CHANGED", "description": "Job state is set"}
    info = {"type": "OPERATIONAL_INFO", "description": "no\n  machines"}
    for state, events, reason in (
        ("FAILED", [ended(2, "exit 2"), ended(9, "exit 9"), changed], "exit 9"),
        ("FAILED", [info, changed], "Job state is set"),
        ("FAILED", [], ""),
        ("QUEUED", [changed, info, changed], "no machines"),
        ("SCHEDULED", [info, changed], "no machines"),
        ("QUEUED", [changed], ""),
        ("RUNNING", [info, ended(2), changed], ""),
        ("SUCCEEDED", [info], ""),
    ):
        assert google_batch._resource(BATCH, 1, batch_job(state, events)).reason == reason, (state, events)


def test_a_batch_job_of_which_little_is_known():
    seen = google_batch._resource(BATCH, 1, {"name": "x"})
    assert (seen.state, seen.run, seen.dollars_an_hour) == (State.WAITING, "", 0.0)


GROUP_JOB = job_of("compute", "pretrain", machine="a3-highgpu-8g", nodes=2)


def member(status="RUNNING", action="NONE", *codes):
    errors = [{"code": code, "message": f"of\n {code}"} for code in codes]
    found = {"instanceStatus": status, "currentAction": action, "lastAttempt": {"errors": {"errors": errors}}}
    return found if status else {key: value for key, value in found.items() if key != "instanceStatus"}


@pytest.mark.parametrize(
    "members, state",
    [
        ([], State.UNFINISHED),
        ([member()], State.UNFINISHED),
        ([member(), member()], State.ACTIVE),
        ([member(), member("STAGING")], State.PROVISIONING),
        ([member("PROVISIONING"), member("PROVISIONING")], State.PROVISIONING),
        ([member(), member("RUNNING", "DELETING")], State.DELETING),
        *(([member(), member(gone)], State.PREEMPTED) for gone in compute_engine.GONE),
        ([member(), member("", "CREATING", "ZONE_RESOURCE_POOL_EXHAUSTED")], State.WAITING),
        ([member(), member("", "CREATING", "VM_MIN_COUNT_NOT_REACHED")], State.WAITING),
        ([member("RUNNING", "NONE", "ZONE_RESOURCE_POOL_EXHAUSTED"), member()], State.ACTIVE),
        ([member(), member("", "CREATING", "STOCKOUT", "QUOTA_EXCEEDED")], State.FAILED),
    ],
)
def test_a_group_of_machines(members, state):
    """Errors for want of machines pass; any other would come again."""
    seen, reason, permanent = compute_engine._state(GROUP_JOB, members)
    assert seen is state and permanent is (state is State.FAILED)
    assert reason == ("QUOTA_EXCEEDED: of QUOTA_EXCEEDED" if state is State.FAILED else "")


def test_machines_cost_from_when_they_are_made_until_they_stop(monkeypatch):
    shown = [member(status) for status in ("PROVISIONING", "STAGING", "RUNNING", "STOPPING", "TERMINATED", "")]
    monkeypatch.setattr(compute_engine_api, "instances", lambda scope, name: shown)
    found = {"name": "tiny-pretrain-3", "description": "hash"}
    seen = compute_engine._resource({"tiny-pretrain-3"}, GROUP_JOB, 3, found)
    assert seen.dollars_an_hour == pytest.approx(3 * machines.find("a3-highgpu-8g").dollars_an_hour)
    assert (seen.attempt, seen.run) == (3, "hash")
    without_group = compute_engine._resource(set(), GROUP_JOB, 3, found)
    assert (without_group.state, without_group.dollars_an_hour) == (State.UNFINISHED, 0.0)


@pytest.mark.parametrize(
    "code, kind, says",
    [
        ("RESOURCE_ALREADY_EXISTS", google_api.Exists, "so it is"),
        ("QUOTA_EXCEEDED", UserError, "quota: so it is; ask for more"),
        ("RESOURCE_NOT_READY", TryAgain, "compute.googleapis.com: so it is"),
        ("INTERNAL_ERROR", TryAgain, "compute.googleapis.com: so it is"),
        ("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", TryAgain, "compute.googleapis.com: so it is"),
        ("INVALID_USAGE", UserError, r"compute: refused (INVALID_USAGE: so it is)"),
    ],
)
def test_what_an_operation_failed_by(code, kind, says):
    error = compute_engine_api.refusal({"code": code, "message": "so\n  it is"})
    assert type(error) is kind and str(error).startswith(says)


SCOPES = {"Zone": Scope("p", zone="z"), "Region": Scope("p", region="r"), "Global": Scope("p")}


@pytest.mark.parametrize("place, kind", [("Zone", GROUP), ("Region", POLICY), ("Global", TEMPLATE)])
def test_an_operation_is_waited_for_where_its_resource_is(monkeypatch, place, kind):
    """In a zone, a region, or everywhere; the last answer's error is raised."""
    sent = []
    answers = [{"name": "op"}, {"name": "op", "status": "RUNNING"}, {"name": "op", "status": "DONE"}]
    answers[-1]["error"] = {"errors": [{"code": "INVALID_USAGE", "message": "no"}]}
    monkeypatch.setattr(google_api, "send", lambda request: sent.append(request) or answers.pop(0))
    with pytest.raises(UserError, match="refused"):
        compute_engine_api.create(compute_engine_api.insert(kind, SCOPES[place], "id", {"name": "x"}))
    assert [request.call for request in sent] == [f"Insert{kind.name}", *[f"Wait{place}Operation"] * 2]
    assert sent[1].message == SCOPES[place].fields | {"operation": "op"}
    for request in sent:
        google_api.parsed(request)
    path = {"Zone": "zones/z", "Region": "regions/r", "Global": "global"}[place]
    assert sent[1].rest()["url"] == f"https://compute.googleapis.com/compute/v1/projects/p/{path}/operations/op/wait"


def test_an_operation_that_does_not_end_is_left(monkeypatch):
    monkeypatch.setattr(google_api, "send", lambda request: {"name": "op", "status": "RUNNING"})
    monkeypatch.setattr(compute_engine_api, "SECONDS_FOR_OPERATION", 0.0)
    with pytest.raises(TryAgain, match="op is not done after 0 s"):
        compute_engine_api.delete(TEMPLATE, Scope("p"), "x")


@pytest.mark.parametrize("kind", [GROUP, POLICY, TEMPLATE])
def test_lists_and_deletions_are_calls_that_the_library_has(monkeypatch, kind):
    sent = []
    monkeypatch.setattr(google_api, "send", lambda request: sent.append(request) or {"status": "DONE"})
    scope = SCOPES[{GROUP: "Zone", POLICY: "Region", TEMPLATE: "Global"}[kind]]
    compute_engine_api.list_all(kind, scope, "x-[0-9]+")
    compute_engine_api.delete(kind, scope, "x-1")
    listed, deleted = sent
    assert listed.message["filter"] == "name eq x-[0-9]+"
    assert deleted.rest()["url"].endswith(f"/{kind.collection}/x-1") and deleted.method == "DELETE"
    for request in sent:
        google_api.parsed(request)
