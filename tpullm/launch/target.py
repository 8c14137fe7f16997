"""The contract between `watch.py` and a service of Google Cloud on which a verb runs.

A target is a module with the functions of `Target`. Its requests are data, so a dry run shows exactly what is sent. It
keeps no state: `observe` asks the cloud what exists.

The metadata of a machine, the same for all targets: the start-up script and what it has to know.
"""

import importlib.resources
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from tpullm.launch import code
from tpullm.launch.google_api import Request
from tpullm.launch.job import Job


def metadata(job: Job, attempt: int) -> dict[str, str]:
    """The metadata attributes of a machine."""
    return {
        "startup-script": text(),
        "tpullm-job": job.spec_path,
        "tpullm-attempt": str(attempt),
        "tpullm-wheel": job.wheel,
        "tpullm-sha256": code.wheel().sha256,
        "tpullm-extras": job.extras(),
        "tpullm-python": job.config.python,
        "tpullm-seconds": str(job.config.max_seconds),
    }


def text() -> str:
    """The start-up script."""
    return importlib.resources.files("tpullm.launch").joinpath("startup.sh").read_text("utf-8")


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

    def create(self, job: Job, attempt: int) -> None:
        """Send `requests`. A resource that exists already is left as it is."""

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
