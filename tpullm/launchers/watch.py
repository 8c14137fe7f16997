"""What to do next about a launch: a function of what is there, and the loop that asks and does it.

The loop keeps nothing that matters: it may be killed, started elsewhere, or run twice at once. Each attempt has a name
of its own, so asking twice makes one thing, and what came of an attempt is noted before its machines are removed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tpullm.errors import TRY_AGAIN, Interrupted, TryAgain, UserError
from tpullm.launchers.job import Job
from tpullm.launchers.record import Attempt, Over, State
from tpullm.launchers.target import Resource, Target
from tpullm.launchers.target import State as Is
from tpullm.log import say

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pace:
    """How patient the loop is, in seconds.

    Args:
        poll: between two looks.
        first_wait: before an attempt after one whose machines never worked; doubled each time.
        longest_wait: the most of that, and of the waits for a service that does not answer.
        report: machines that have not reported after this long never will: their set-up is broken.
    """

    poll: float = 15.0
    first_wait: float = 15.0
    longest_wait: float = 600.0
    report: float = 3600.0


@dataclass(frozen=True)
class Ask:
    """Ask for the machines of an attempt, not before a time (seconds since 1970)."""

    number: int
    not_before: float = 0.0


@dataclass(frozen=True)
class Judge:
    """Note what came of an attempt."""

    number: int
    over: Over


@dataclass(frozen=True)
class Active:
    """Note that the machines of an attempt are there."""

    number: int


@dataclass(frozen=True)
class Remove:
    """Remove a resource."""

    resource: Resource


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet, and why; `alive`: an attempt is on its way or at work."""

    why: str
    alive: bool = True


@dataclass(frozen=True)
class Finish:
    """All is over and nothing is left."""

    over: Over


Action = Ask | Judge | Active | Remove | Wait | Finish


def decide(
    attempts: Sequence[Attempt], resources: Sequence[Resource], hosts: int, most: int, pace: Pace, now: float
) -> Action:
    """What to do next.

    Args:
        attempts: as the run directory says.
        resources: what is there, of this job.
        hosts: of an attempt.
        most: so many attempts may be lost by no fault of the run, one after the other.
        now: seconds since 1970.
    """
    last = attempts[-1] if attempts else None
    for resource in resources:
        old = last is None or resource.attempt < last.number or (resource.attempt == last.number and last.over)
        if old and resource.state is not Is.DELETING:
            return Remove(resource)
    if last is None:
        return Ask(1)
    if last.over is None:
        own = next((resource for resource in resources if resource.attempt == last.number), None)
        return _about(last, own, hosts, pace, now)
    if resources:  # what is being deleted may still count against the quota
        return Wait(f"{resources[-1].name} is being deleted", alive=False)
    if not last.over.again:
        return Finish(last.over)
    lost = _lost(attempts)
    if len(lost) > most:
        why = f"machines were lost {len(lost)} times, the last time: {last.over.why}; launch again to go on"
        return Judge(last.number, Over(False, TRY_AGAIN, why, now))
    idle = next((number for number, attempt in enumerate(reversed(lost)) if attempt.starts), len(lost))
    wait = min(pace.first_wait * 2 ** (idle - 1), pace.longest_wait) if idle else 0.0
    return Ask(last.number + 1, last.over.time + wait)


def _lost(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The last attempts, as many as were lost one after the other."""
    kept = max((attempt.number for attempt in attempts if attempt.over and not attempt.over.again), default=0)
    return [attempt for attempt in attempts if attempt.number > kept]


def _about(attempt: Attempt, resource: Resource | None, hosts: int, pace: Pace, now: float) -> Action:
    """About an attempt of which nobody has said yet what came of it."""
    if over := _verdict(attempt, resource, hosts, now):
        return Judge(attempt.number, over)
    if resource is None or resource.state is Is.UNFINISHED:  # whoever wrote the note did not get further
        return Ask(attempt.number)
    if resource.state is not Is.ACTIVE:
        return Wait(resource.state.value)
    if not attempt.active:
        return Active(attempt.number)
    if not attempt.starts and now - attempt.active > pace.report:
        why = f"no machine reported within {pace.report / 60:.0f} minutes; may its service account use the bucket?"
        return Judge(attempt.number, Over(False, 2, why, now))
    return Wait("running" if attempt.starts else "being set up")


def _verdict(attempt: Attempt, resource: Resource | None, hosts: int, now: float) -> Over | None:
    """What came of an attempt, if its hosts or its machines say so; what the hosts say counts first."""
    by_code = {ended.code: ended for ended in reversed(attempt.ended)}
    own_faults = [ended for ended in attempt.ended if ended.code not in (0, 2, TRY_AGAIN, 130)]
    if 2 in by_code:
        return Over(False, 2, by_code[2].line, now)
    if own_faults:
        return Over(False, own_faults[0].code, own_faults[0].line, now)
    if len(attempt.ended) == hosts and set(by_code) == {0}:
        return Over(False, 0, "finished", now)
    if TRY_AGAIN in by_code or len(attempt.ended) == hosts:
        why = by_code.get(TRY_AGAIN, by_code.get(130)) or attempt.ended[0]
        return Over(True, TRY_AGAIN, why.line, now)
    if resource is None and attempt.active:
        return Over(True, TRY_AGAIN, "the machines are gone", now)
    if resource and resource.state is Is.PREEMPTED:
        return Over(True, TRY_AGAIN, "the machines were taken back", now)
    if resource and resource.state in (Is.FAILED, Is.DONE):
        code = 2 if resource.hopeless else TRY_AGAIN
        return Over(not resource.hopeless, code, f"the machines could not be made: {resource.why}", now)
    return None


def follow(job: Job, target: Target, pace: Pace = Pace()) -> int:  # noqa: B008
    """Until the run is over and nothing is left; the exit code of the verb.

    Raises:
        UserError: the run ended by a mistake; the line is its own.
        Interrupted: Ctrl-C; the run goes on.
    """
    state, told, wait = State(job.folder), "", pace.poll
    try:
        while True:
            try:
                action = look(job, target, state, pace)
                if isinstance(action, Finish):
                    return _end(job, action.over)
                if isinstance(action, Wait) and action.why != told:
                    say(f"{job.name}: {action.why}")
                    told = action.why
                time.sleep(act(action, job, target, state, pace))
                wait = pace.poll
            except TryAgain as error:
                say(f"{job.name}: {error}; trying again in {wait:.0f} s")
                time.sleep(wait)
                wait = min(2 * wait, pace.longest_wait)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job.name}: not watched any more; it goes on, and costs. The same command watches it"
        ) from None


def begin(job: Job, target: Target, state: State, pace: Pace = Pace()) -> bool:  # noqa: B008
    """Until an attempt is on its way or at work; whether there is one, for the run may be over."""
    while True:
        action = patiently(lambda: look(job, target, state, pace), pace)
        if isinstance(action, Active) or (isinstance(action, Wait) and action.alive):
            return True
        if isinstance(action, Finish):
            _end(job, action.over)
            return False
        time.sleep(patiently(lambda action=action: act(action, job, target, state, pace), pace))


def look(job: Job, target: Target, state: State, pace: Pace) -> Action:
    """What is there now, and so what to do next."""
    resources = owned(job, target.observe(job))
    attempts = state.attempts()
    return decide(attempts, resources, job.hosts, job.config.max_preemptions, pace, time.time())


def owned(job: Job, resources: Sequence[Resource]) -> Sequence[Resource]:
    """The resources; `UserError` if one of them works for another run."""
    for resource in resources:
        if resource.run != job.run_hash:
            raise UserError(f"name: {job.name} is used by another run ({resource.name}); choose another with --name")
    return resources


def act(action: Action, job: Job, target: Target, state: State, pace: Pace) -> float:
    """Do it; how long to wait before the next look, in seconds."""
    match action:
        case Ask(number, not_before):
            if (early := not_before - time.time()) > 0:
                return min(early, pace.poll)
            ask(job, target, state, number)
            return 0.0
        case Judge(number, over):
            if over.again:
                say(f"{job.name}: attempt {number}: {over.why}")
            state.judge(number, over)
            return 0.0
        case Active(number):
            state.saw_active(number)
            return 0.0
        case Remove(resource):
            say(f"{job.name}: removing {resource.name}")
            target.delete(job, resource)
    return pace.poll


def ask(job: Job, target: Target, state: State, number: int) -> None:
    """Begin an attempt: the note first, so that one whose answer was lost is found by its name."""
    say(f"{job.name}: attempt {number}: asking for machines")
    state.ask(number, job.sheet_path)
    target.create(job, number)


def _end(job: Job, over: Over) -> int:
    if over.code == 0:
        say(f"{job.name}: finished; nothing is left that costs")
        return 0
    error = UserError(f"{job.name}: {over.why}")
    error.code = over.code
    raise error


def patiently(what: Callable[[], Result], pace: Pace = Pace(), tries: int = 5) -> Result:  # noqa: B008
    """A result of a service that may need to be asked some times; `TryAgain` if that was not enough."""
    for number in range(tries):
        try:
            return what()
        except TryAgain:
            if number == tries - 1:
                raise
            time.sleep(min(2**number, pace.poll))
    raise AssertionError
