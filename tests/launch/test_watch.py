"""The next action of a launch, by its attempts and resources; and the loop: what it says, waits for and notes."""

import threading
import time
from unittest.mock import Mock

import pytest

from tests.launch.conftest import make_job
from tpullm.launch import watch
from tpullm.launch.record import Attempt, HostExit, Outcome, Record, clock
from tpullm.launch.watch import Conclude, Create, Delete, Finish, NoteActive, Pace, Resource, State, Wait, decide
from tpullm.system.errors import TRY_AGAIN, Interrupted, TryAgain, UserError

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


def test_the_first_attempt_is_created_once_and_what_is_left_of_an_earlier_one_deleted():
    assert next_of([], []) == Create(1)
    assert next_of([attempt()], []) == Create(1), "noted, but its machines were never made"
    assert next_of([attempt()], [resource(state=State.WAITING)]) == Wait("waiting for capacity")
    # A watcher that was late created it again.
    assert next_of([lost(1), attempt(2)], [resource(1), resource(2)]) == Delete(resource(1))
    finished = attempt(ended=[(0, 0, ""), (1, 0, "")], active=1.0, starts=1)
    assert next_of([finished], [resource(state=State.PREEMPTED)]).outcome.code == 0
    assert not next_of([finished], [resource()]).outcome.retry
    judged = next_of([attempt()], [resource(state=State.FAILED, reason="no quota", permanent=True)])
    assert (judged.outcome.retry, judged.outcome.code) == (False, 2) and "no quota" in judged.outcome.reason


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


def test_waits_double_while_no_machine_starts_the_verb_and_have_an_end():
    assert next_of([lost(1)], []) == Create(2, NOW)
    assert next_of([lost(1, starts=0)], []) == Create(2, NOW + 10)
    assert next_of([lost(1), lost(2, starts=0), lost(3, starts=0)], []) == Create(4, NOW + 20)
    assert next_of([lost(n, starts=0) for n in range(1, 9)], [], most=10) == Create(9, NOW + 100)
    action = next_of([lost(n) for n in range(1, 5)], [])
    assert isinstance(action, Conclude) and not action.outcome.retry and action.outcome.code == TRY_AGAIN
    ended = attempt(4, outcome=action.outcome)
    assert next_of([lost(1), lost(2), lost(3), ended], []) == Finish(action.outcome)
    assert next_of([lost(1), lost(2), lost(3), ended, lost(5)], []) == Create(6, NOW), "counted anew"


def test_a_launch_ends_when_no_resource_is_left_or_no_machine_reports():
    over = Outcome(False, 0, "finished", NOW)
    assert next_of([attempt(outcome=over)], [resource()]) == Delete(resource())
    assert isinstance(next_of([attempt(outcome=over)], [resource(state=State.DELETING)]), Wait)
    assert next_of([attempt(outcome=over)], []) == Finish(over)
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


SLOW = watch.Pace(poll=10, first_wait=1, longest_wait=25, report=60)


class Service:
    """A target in memory; `answers` are faults of the next observations, None is no fault."""

    def __init__(self, job):
        self.resources, self.answers, self.done = [], [], []
        self.job = job

    def observe(self, job):
        if self.answers and (fault := self.answers.pop(0)):
            raise fault
        return list(self.resources)

    def requests(self, job, attempt):
        assert Record(job.folder).attempts()[-1].number == attempt, "noted before"
        self.done.append(f"create {attempt}")
        self.resources.append(Resource(f"x-{attempt}", attempt, State.WAITING, self.job.run_hash))
        return []

    def delete(self, job, resource):
        (attempt,) = (each for each in Record(job.folder).attempts() if each.number == resource.attempt)
        assert attempt.outcome, "concluded before"
        self.done.append(f"delete {resource.attempt}")
        self.resources.remove(resource)

    def set(self, state):
        old = self.resources.pop()
        self.resources.append(Resource(old.name, old.attempt, state, old.run))


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path / "run", name="x")


@pytest.fixture
def record(job):
    return Record(job.folder)


@pytest.fixture
def service(job):
    return Service(job)


@pytest.fixture
def slept(monkeypatch):
    """The waits of this thread, none of which happens; each runs the next of `then`."""
    here, wait = threading.get_ident(), time.sleep

    def sleep(seconds):
        if threading.get_ident() != here:  # a thread that another test has left, such as one that beats
            return wait(seconds)
        slept.append(seconds)
        if slept.then and seconds:
            slept.then.pop(0)()

    slept = type("Slept", (list,), {"then": []})()
    monkeypatch.setattr(watch.time, "sleep", sleep)
    return slept


def report(record, number, *codes):
    record.ready(number, 1, 0)
    for host, code in enumerate(codes):
        record.add_exit(number, HostExit(host, code, f"ended with {code}"))


def test_a_run_from_its_start_to_its_end(job, record, service, slept, capsys):
    """Lost once; each line is said once, and no wait is longer than one look needs."""
    slept.then += [
        lambda: None,  # still waiting: nothing is said again
        lambda: service.set(State.ACTIVE),
        lambda: (record.ready(1, 1, 0), service.set(State.PREEMPTED)),  # it worked, so the next one is not delayed
        lambda: None,
        lambda: service.set(State.ACTIVE),
        lambda: report(record, 2, 0, 0, 0, 0),
    ]
    assert not watch.follow(job, service, SLOW)
    assert service.done == ["create 1", "delete 1", "create 2", "delete 2"]
    assert [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "attempt 1: asking for machines",
        "waiting for capacity",
        "being set up",
        "attempt 1: the machines were taken back",
        "deleting x-1",
        "attempt 2: asking for machines",
        "waiting for capacity",
        "being set up",
        "deleting x-2",
        "finished; nothing is left that costs",
    ]
    assert max(slept) <= SLOW.poll


@pytest.mark.parametrize("code", [2, 139])
def test_the_verbs_code_and_line_are_the_launchers(job, record, service, slept, code):
    watch.start_attempt(job, service, record, 1)
    service.set(State.ACTIVE)
    report(record, 1, code)
    with pytest.raises(UserError, match=f"^x: ended with {code}$") as error:
        watch.follow(job, service, SLOW)
    assert error.value.code == code and service.resources == []


def test_waits_for_a_service_that_does_not_answer_double_and_begin_anew(job, service, slept, capsys):
    away = TryAgain("away")
    service.answers += [away, away, away, away, None, away]
    slept.then += [lambda: None] * 6 + [lambda: service.answers.append(KeyboardInterrupt())]
    with pytest.raises(Interrupted, match="no longer watched; the run goes on and costs"):
        watch.follow(job, service, SLOW)
    assert [seconds for seconds in slept if seconds][:5] == [10, 20, 25, 25, 10]
    assert capsys.readouterr().err.count("away; trying again in") == 5
    assert [each.attempt for each in service.resources] == [1], "left going"


def test_what_is_being_deleted_is_waited_for_before_the_next_attempt(job, record, service, slept):
    watch.start_attempt(job, service, record, 1)
    record.ready(1, 1, 0)
    record.conclude(1, Outcome(True, 75, "lost", 0.0))
    service.set(State.DELETING)
    slept.then += [lambda: None, service.resources.clear]
    assert watch.follow(job, service, SLOW, stay=False)
    assert service.done == ["create 1", "create 2"]


def test_a_finished_run_is_not_started(job, record, service, slept):
    watch.start_attempt(job, service, record, 1)
    service.resources.clear()
    record.conclude(1, Outcome(False, 0, "finished", 0.0))
    assert not watch.follow(job, service, SLOW, stay=False)
    record.conclude(1, Outcome(False, 2, "no such key", 0.0))
    with pytest.raises(UserError, match="x: no such key"):
        watch.follow(job, service, SLOW, stay=False)
    assert service.done == ["create 1"]


def test_each_action_and_the_wait_after_it(job, record, service):
    def perform(action):
        return watch.perform(action, job, service, record, SLOW)

    early = clock()
    assert perform(Create(1, early + 1000)) == 10 and 0 < perform(Create(1, early + 5)) <= 5
    assert service.done == [] and record.attempts() == [], "too early"
    assert perform(Create(1, early - 1)) == 0.0 and service.done == ["create 1"]
    assert record.attempts()[0].spec == job.spec_path
    assert perform(NoteActive(1)) == 0.0 and record.attempts()[0].active >= early
    outcome = Outcome(True, 75, "lost", 1.0)
    assert perform(Conclude(1, outcome)) == 0.0 and record.attempts()[0].outcome == outcome
    assert perform(Delete(service.resources[0])) == 10 and service.resources == []
    assert perform(Wait("any")) == perform(Finish(outcome)) == 10


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_ends_no_launch_whose_machines_are_set_up(job, service, record, monkeypatch, jump):
    watch.perform(Create(1), job, service, record, SLOW)
    service.set(State.ACTIVE)
    watch.perform(NoteActive(1), job, service, record, SLOW)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert watch.follow(job, service, watch.Pace(), stay=False), "it waits for the machines to be set up"


def test_only_try_again_is_retried(slept):
    away = TryAgain("away")
    assert watch.with_retries(Mock(side_effect=[away] * 4 + ["answer"]), SLOW) == "answer" and slept == [1, 2, 4, 8]
    with pytest.raises(TryAgain):
        watch.with_retries(Mock(side_effect=[away] * 5), SLOW)
    with pytest.raises(UserError, match="refused"):
        watch.with_retries(Mock(side_effect=UserError("refused")), SLOW)
