"""What to do next about a launch (`decide`, a pure function), and the loop that observes a service and acts.

A service of Google Cloud is a `Target`: a module that keeps no state and whose requests are data. The loop keeps no
state that matters: it may be killed, started elsewhere, or run twice at once. A launch is its resources, named
`NAME-ATTEMPT` and labelled with the hash of the run directory, and its record (`record.py`). Each attempt has its own
name, so two requests for it create one resource. Its outcome is noted before its machines are deleted. A deleted
machine of a group is missing, so an attempt that had machines and lacks one is over.

What `--watch` does when the supervisors have reported (`supervisor.py`):

    0 of all hosts                              remove the machines; finished
    2, or another fault                         remove the machines; exit with the line of the report
    130 after a notice, or the hours are over   remove the machines and ask for new ones, `max_preemptions` times
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

from tpullm.launch import google_api
from tpullm.launch.google_api import Request
from tpullm.launch.job import Job
from tpullm.launch.record import Attempt, Outcome, Record, clock
from tpullm.system.errors import TRY_AGAIN, Interrupted, TryAgain, UserError
from tpullm.system.log import say

Result = TypeVar("Result")
TRIES = 5  # of a call outside of the loop


class State(Enum):
    """The state of a resource, with its words for people."""

    UNFINISHED = "not all asked for yet"
    WAITING = "waiting for capacity"
    PROVISIONING = "being made"
    ACTIVE = "active"
    PREEMPTED = "taken back"
    FAILED = "failed"
    DONE = "done"
    DELETING = "being deleted"


@dataclass(frozen=True)
class Resource:
    """A resource of a launch that exists now.

    Args:
        name: name in Google's API, for people and for `delete`.
        attempt: number of the attempt that it belongs to, from 1.
        state: its state now.
        run: label with the hash of the run directory that it belongs to.
        reason: why it failed or why it waits, in the service's words.
        permanent: another attempt would fail in the same way (no quota, no such image).
        dollars_an_hour: its cost now, by the price table; None is not known.
    """

    name: str
    attempt: int
    state: State
    run: str
    reason: str = ""
    permanent: bool = False
    dollars_an_hour: float | None = 0.0


class Target(Protocol):
    """A module of this folder that runs jobs in the cloud."""

    def check(self, job: Job) -> None:
        """Refuse a job that can't run on this target, without a network; `UserError` names the key."""

    def requests(self, job: Job, attempt: int) -> Sequence[Request]:
        """All requests that create an attempt, in order: the same for the same job and attempt."""

    def observe(self, job: Job) -> Sequence[Resource]:
        """The resources that exist under the job's name, of all attempts and of any run, sorted by attempt."""

    def delete(self, job: Job, resource: Resource) -> None:
        """Delete a resource with all that belongs to it. It may be gone already."""


def by_attempt(
    job: Job, listed: Iterable[dict[str, Any]], resource: Callable[[Job, int, dict[str, Any]], Resource]
) -> list[Resource]:
    """The resources of a job among those that an API lists, sorted by attempt.

    Args:
        job: its resources have the names that `Job.attempt_name` gives.
        listed: resources in REST form, each with its `name`.
        resource: reads one of them; its arguments are the job, the attempt and the resource in REST form.
    """
    pattern = re.compile(re.escape(job.name) + r"-(\d+)")
    found = [(pattern.fullmatch(each["name"].rpartition("/")[2]), each) for each in listed]
    return sorted((resource(job, int(match[1]), each) for match, each in found if match), key=lambda r: r.attempt)


@dataclass(frozen=True)
class Pace:
    """How long the loop waits, in seconds.

    Args:
        poll: between two observations.
        first_wait: before an attempt that follows one whose machines never started the verb; doubled each time.
        longest_wait: upper bound of `first_wait` when doubled, and of the wait for a service that does not answer.
        report: machines that have not reported after this long never will: their set-up is broken.
    """

    poll: float = 15.0
    first_wait: float = 15.0
    longest_wait: float = 600.0
    report: float = 3600.0


@dataclass(frozen=True)
class Create:
    """Create the machines of an attempt, not before a time (seconds since 1970)."""

    number: int
    not_before: float = 0.0


@dataclass(frozen=True)
class Conclude:
    """Note the outcome of an attempt."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class NoteActive:
    """Note that the machines of an attempt are there."""

    number: int


@dataclass(frozen=True)
class Delete:
    """Delete a resource."""

    resource: Resource


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet, and the reason. `alive`: an attempt is waiting for machines or runs."""

    reason: str
    alive: bool = True


@dataclass(frozen=True)
class Finish:
    """The launch has ended, and nothing is left of it that costs."""

    outcome: Outcome


Action = Create | Conclude | NoteActive | Delete | Wait | Finish


def decide(
    attempts: Sequence[Attempt], resources: Sequence[Resource], hosts: int, most: int, pace: Pace, now: float
) -> Action:
    """What to do next.

    Args:
        attempts: of the record in the run directory.
        resources: of this job that exist now.
        hosts: number of hosts of an attempt.
        most: number of attempts in a row that may lose their machines.
        now: seconds since 1970.
    """
    last = attempts[-1] if attempts else None
    for resource in resources:
        old = last is None or resource.attempt < last.number or (resource.attempt == last.number and last.outcome)
        if old and resource.state is not State.DELETING:
            return Delete(resource)
    if last is None:
        return Create(1)
    if last.outcome is None:
        own = next((resource for resource in resources if resource.attempt == last.number), None)
        return _decide_open(last, own, hosts, pace, now)
    if resources:  # a resource that is being deleted may still count against the quota
        return Wait(f"{resources[-1].name} is being deleted", alive=False)
    if not last.outcome.retry:
        return Finish(last.outcome)
    final = max((attempt.number for attempt in attempts if attempt.outcome and not attempt.outcome.retry), default=0)
    lost = [attempt for attempt in attempts if attempt.number > final]
    if len(lost) > most:
        reason = f"machines were lost {len(lost)} times, the last time: {last.outcome.reason}; launch again to resume"
        return Conclude(last.number, Outcome(False, TRY_AGAIN, reason, now))
    idle = next((number for number, attempt in enumerate(reversed(lost)) if attempt.starts), len(lost))
    wait = min(pace.first_wait * 2 ** (idle - 1), pace.longest_wait) if idle else 0.0
    return Create(last.number + 1, last.outcome.time + wait)


def _decide_open(attempt: Attempt, resource: Resource | None, hosts: int, pace: Pace, now: float) -> Action:
    """What to do about an attempt without an outcome."""
    if outcome := _outcome(attempt, resource, hosts, now):
        return Conclude(attempt.number, outcome)
    if resource is None or resource.state is State.UNFINISHED:  # a watcher noted the attempt and was then killed
        return Create(attempt.number)
    if resource.state is not State.ACTIVE:
        return Wait(resource.state.value)
    if not attempt.active:
        return NoteActive(attempt.number)
    if not attempt.starts and now - attempt.active > pace.report:
        reason = f"no machine reported within {pace.report / 60:.0f} minutes; may its service account use the bucket?"
        return Conclude(attempt.number, Outcome(False, 2, reason, now))
    return Wait("running" if attempt.starts else "being set up")


def _outcome(attempt: Attempt, resource: Resource | None, hosts: int, now: float) -> Outcome | None:
    """How an attempt ended, by its hosts' reports first, then by the state of its machines; None if it has not."""
    by_code = {each.code: each for each in reversed(attempt.exits)}
    faults = [each for each in attempt.exits if each.code not in (0, 2, TRY_AGAIN, 130)]
    if 2 in by_code:
        return Outcome(False, 2, by_code[2].line, now)
    if faults:
        return Outcome(False, faults[0].code, faults[0].line, now)
    if len(attempt.exits) == hosts and set(by_code) == {0}:
        return Outcome(False, 0, "finished", now)
    if TRY_AGAIN in by_code or len(attempt.exits) == hosts:
        cause = by_code.get(TRY_AGAIN, by_code.get(130))
        return Outcome(True, TRY_AGAIN, cause.line, now)
    had_machines = attempt.active or attempt.starts
    if had_machines and (resource is None or resource.state is State.UNFINISHED):
        return Outcome(True, TRY_AGAIN, "the machines are gone", now)
    if resource and resource.state is State.PREEMPTED:
        return Outcome(True, TRY_AGAIN, "the machines were taken back", now)
    if resource and resource.state in (State.FAILED, State.DONE):
        code = 2 if resource.permanent else TRY_AGAIN
        return Outcome(not resource.permanent, code, f"the machines could not be made: {resource.reason}", now)
    return None


def follow(job: Job, target: Target, pace: Pace = Pace(), stay: bool = True) -> bool:  # noqa: B008
    """Act until the launch has ended and nothing is left that costs: False.

    Args:
        stay: False: act until an attempt waits for machines or runs, and return True.

    Raises:
        UserError: the verb ended with an error; its line and exit code are the verb's.
        Interrupted: Ctrl-C; the run goes on.
    """
    record, said, wait = Record(job.folder), "", pace.poll
    try:
        while True:
            try:
                resources = check_owner(job, target.observe(job))
                action = decide(record.attempts(), resources, job.hosts, job.config.max_preemptions, pace, clock())
                if isinstance(action, Finish):
                    return _end_launch(job, action.outcome)
                if not stay and (isinstance(action, NoteActive) or (isinstance(action, Wait) and action.alive)):
                    return True
                if isinstance(action, Wait) and action.reason != said:
                    say(f"{job.name}: {action.reason}")
                    said = action.reason
                time.sleep(perform(action, job, target, record, pace))
                wait = pace.poll
            except TryAgain as error:
                say(f"{job.name}: {error}; trying again in {wait:.0f} s")
                time.sleep(wait)
                wait = min(2 * wait, pace.longest_wait)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job.name}: no longer watched; the run goes on and costs. The same command watches it again"
        ) from None


def check_owner(job: Job, resources: Sequence[Resource]) -> Sequence[Resource]:
    """The same resources; `UserError` if one of them belongs to another run."""
    for resource in resources:
        if resource.run != job.run_hash:
            raise UserError(f"name: {job.name} is used by another run ({resource.name}); choose another with --name")
    return resources


def perform(action: Action, job: Job, target: Target, record: Record, pace: Pace) -> float:
    """Perform an action; the seconds to wait before the next observation."""
    match action:
        case Create(number, not_before):
            if (early := not_before - clock()) > 0:
                return min(early, pace.poll)
            start_attempt(job, target, record, number)
        case Conclude(number, outcome):
            if outcome.retry:
                say(f"{job.name}: attempt {number}: {outcome.reason}")
            record.conclude(number, outcome)
        case NoteActive(number):
            record.saw_active(number)
        case Delete(resource):
            say(f"{job.name}: deleting {resource.name}")
            target.delete(job, resource)
    return 0.0 if isinstance(action, Create | Conclude | NoteActive) else pace.poll


def start_attempt(job: Job, target: Target, record: Record, number: int) -> None:
    """Note an attempt, then create its machines. The note finds machines whose request had no answer."""
    say(f"{job.name}: attempt {number}: asking for machines")
    record.begin(number, job.spec_path)
    for request in target.requests(job, number):
        google_api.create(request)


def _end_launch(job: Job, outcome: Outcome) -> bool:
    if outcome.code == 0:
        say(f"{job.name}: finished; nothing is left that costs")
        return False
    error = UserError(f"{job.name}: {outcome.reason}")
    error.code = outcome.code
    raise error


def with_retries(call: Callable[[], Result], pace: Pace = Pace()) -> Result:  # noqa: B008
    """The result of a call that is repeated after `TryAgain`; the last try's `TryAgain` is raised."""
    for number in range(TRIES - 1):
        try:
            return call()
        except TryAgain:
            time.sleep(min(2**number, pace.poll))
    return call()
