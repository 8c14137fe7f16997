"""What a place to run on must be able to do: the contract between `watch.py` and Google's services.

A target is a module with the functions of `Target`. What it sends is data (`Request`), so that a dry run shows the very
thing, and it keeps nothing: what there is, is asked of the cloud (`observe`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from tpullm.launchers.google_api import Request
from tpullm.launchers.job import Job


class State(Enum):
    """What has become of a resource."""

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
    """Something that a launch made and that is still there.

    Args:
        name: as Google knows it, for people and for `delete`.
        attempt: which attempt of the job it is, from 1.
        state: now.
        run: the label with the hash of the run directory that it works for.
        why: it failed, in the service's words.
        hopeless: asking again would fail in the same way (no quota, no such image).
        dollars_an_hour: what it costs now, by the table of prices; None is not known.
    """

    name: str
    attempt: int
    state: State
    run: str
    why: str = ""
    hopeless: bool = False
    dollars_an_hour: float | None = 0.0


class Target(Protocol):
    """A module of this folder that runs jobs in the cloud."""

    def check(self, job: Job) -> None:
        """Refuse what can't be launched here, without a network; `UserError` names the key."""

    def requests(self, job: Job, attempt: int) -> Sequence[Request]:
        """All that making an attempt sends, in order. The same for the same job and attempt."""

    def observe(self, job: Job) -> Sequence[Resource]:
        """What is there under the job's name, of any attempt, by attempt; whoever's it is."""

    def create(self, job: Job, attempt: int) -> None:
        """Send what `requests` says, but nothing for what is there already."""

    def delete(self, job: Job, resource: Resource) -> None:
        """Remove a resource and all that belongs to it; what is gone already is fine."""


def by_attempt(
    job: Job, listed: Iterable[dict[str, Any]], resource: Callable[[Job, int, dict[str, Any]], Resource]
) -> list[Resource]:
    """The resources of a job among those that an API lists, sorted by attempt.

    Args:
        job: whose resources are wanted, by the names that `Job.attempt_name` gives.
        listed: resources in REST form, each with its `name`.
        resource: reads one of them, given the job and the attempt.
    """
    pattern = re.compile(re.escape(job.name) + r"-(\d+)")
    found = [(pattern.fullmatch(each["name"].rpartition("/")[2]), each) for each in listed]
    return sorted((resource(job, int(match[1]), each) for match, each in found if match), key=lambda r: r.attempt)
