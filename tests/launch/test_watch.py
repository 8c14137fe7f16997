"""The next action of a launch, by its attempts and resources."""

import pytest

from tpullm.launch.record import Attempt, HostExit, Outcome
from tpullm.launch.watch import Conclude, Create, Delete, Finish, NoteActive, Pace, Resource, State, Wait, decide
from tpullm.system.errors import TRY_AGAIN

PACE = Pace(poll=1, first_wait=10, longest_wait=100, report=60)
NOW = 1000.0


def attempt(number=1, ended=(), outcome=None, active=0.0, starts=0) -> Attempt:
    return Attempt(number, "spec", active, starts, tuple(HostExit(*each) for each in ended), outcome)


def lost(number, starts=1) -> Attempt:
    return attempt(number, outcome=Outcome(True, TRY_AGAIN, "taken back", NOW), starts=starts)


def resource(number=1, state=State.ACTIVE, **more) -> Resource:
    return Resource(f"r-{number}", number, state, "run", **more)


def next_of(attempts, resources, hosts=2, most=3):
    return decide(attempts, resources, hosts, most, PACE, NOW)


def test_the_first_attempt_is_created_once():
    assert next_of([], []) == Create(1)
    assert next_of([attempt()], []) == Create(1), "noted, but its machines were never made"
    assert next_of([attempt()], [resource(state=State.WAITING)]) == Wait("waiting for capacity")


def test_a_resource_of_an_earlier_attempt_is_deleted():
    """A watcher that was late created it again."""
    assert next_of([lost(1), attempt(2)], [resource(1), resource(2)]) == Delete(resource(1))


def test_reports_of_hosts_count_more_than_states_of_machines():
    finished = attempt(ended=[(0, 0, ""), (1, 0, "")], active=1.0, starts=1)
    assert next_of([finished], [resource(state=State.PREEMPTED)]).outcome.code == 0
    assert not next_of([finished], [resource()]).outcome.retry


@pytest.mark.parametrize(
    "ended, code, again",
    [
        ([(0, 0, "")], None, None),  # the other host still runs
        ([(0, 75, "host 1 ended"), (1, 2, "no such key")], 2, False),
        ([(1, 2, "no such key")], 2, False),
        ([(1, 139, "crash"), (0, 75, "host 1 ended")], 139, False),
        ([(0, 75, "host 1 ended"), (1, 130, "taken back")], TRY_AGAIN, True),
        ([(1, 130, "taken back")], None, None),  # the other host will report too, or lose its machine
    ],
)
def test_how_the_hosts_ended(ended, code, again):
    action = next_of([attempt(ended=ended, active=1.0, starts=1)], [resource()])
    if code is None:
        assert action == Wait("running")
    else:
        assert (action.outcome.code, action.outcome.retry) == (code, again)


@pytest.mark.parametrize("state", [State.PREEMPTED, State.FAILED])
def test_lost_machines_are_deleted_and_replaced(state):
    there = resource(state=state, reason="no capacity")
    judged = next_of([attempt(active=1.0, starts=1)], [there])
    assert isinstance(judged, Conclude) and judged.outcome.retry
    over = attempt(outcome=judged.outcome, starts=1)
    assert next_of([over], [there]) == Delete(there)
    assert isinstance(next_of([over], [resource(state=State.DELETING)]), Wait), "it may count against the quota"
    assert next_of([over], []) == Create(2, NOW)


def test_a_permanent_failure_is_not_retried():
    judged = next_of([attempt()], [resource(state=State.FAILED, reason="no quota", permanent=True)])
    assert (judged.outcome.retry, judged.outcome.code) == (False, 2) and "no quota" in judged.outcome.reason


def test_waits_double_while_no_machine_starts_the_verb():
    assert next_of([lost(1)], []) == Create(2, NOW)
    assert next_of([lost(1, starts=0)], []) == Create(2, NOW + 10)
    assert next_of([lost(1), lost(2, starts=0), lost(3, starts=0)], []) == Create(4, NOW + 20)
    assert next_of([lost(n, starts=0) for n in range(1, 9)], [], most=10) == Create(9, NOW + 100)


def test_there_is_a_limit_to_how_often_machines_may_be_lost():
    action = next_of([lost(n) for n in range(1, 5)], [])
    assert isinstance(action, Conclude) and not action.outcome.retry and action.outcome.code == TRY_AGAIN
    ended = attempt(4, outcome=action.outcome)
    assert next_of([lost(1), lost(2), lost(3), ended], []) == Finish(action.outcome)
    assert next_of([lost(1), lost(2), lost(3), ended, lost(5)], []) == Create(6, NOW), "counted anew"


def test_a_launch_ends_when_no_resource_is_left():
    over = Outcome(False, 0, "finished", NOW)
    assert next_of([attempt(outcome=over)], [resource()]) == Delete(resource())
    assert isinstance(next_of([attempt(outcome=over)], [resource(state=State.DELETING)]), Wait)
    assert next_of([attempt(outcome=over)], []) == Finish(over)


def test_machines_that_never_report_are_given_up():
    assert next_of([attempt()], [resource()]) == NoteActive(1)
    assert next_of([attempt(active=NOW - 59)], [resource()]) == Wait("being set up")
    judged = next_of([attempt(active=NOW - 61)], [resource()])
    assert not judged.outcome.retry and "service account" in judged.outcome.reason
    assert next_of([attempt(active=NOW - 61, starts=1)], [resource()]) == Wait("running")


@pytest.mark.parametrize("left", [[], [resource(state=State.UNFINISHED)]])
@pytest.mark.parametrize("seen", [{"active": 1.0}, {"starts": 1}, {"active": 1.0, "starts": 1}])
def test_machines_that_somebody_deleted_are_replaced(seen, left):
    """All of them, or one of a group; watched at the time, or not."""
    judged = next_of([attempt(**seen)], left)
    assert judged.outcome.retry and judged.outcome.reason == "the machines are gone"
