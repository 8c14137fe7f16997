"""What a place to run on must be able to do: the contract between `watch.py` and Google's services.

A target is a module with the functions of `Target`. What it sends is data (`Request`), so that a dry run shows the very
thing, and it keeps nothing: what there is, is asked of the cloud (`observe`).
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urlencode

from tpullm.launchers.job import Job


@dataclass(frozen=True)
class Request:
    """One call of a Google API, as its published definition has it.

    Args:
        client: the class of the client library that sends it, such as `tpu_v2.TpuClient`.
        call: the call by its published name, such as `CreateQueuedResource`.
        method: of HTTP.
        path: of HTTP, with the message's fields in braces, such as `v2/{parent}/queuedResources`.
        host: that serves it.
        message: the call's whole message, as JSON with the names of the REST form.
        body: which field of the message is the body of the HTTP request; the rest is its path and its query.
        kind: the message's type; empty is the call's name and `Request`, as most have it.
        function: of the client; empty is the call's name, as Python writes it.
    """

    client: str
    call: str
    method: str
    path: str
    host: str
    message: dict[str, Any]
    body: str = ""
    kind: str = ""
    function: str = ""

    def rest(self) -> dict[str, Any]:
        """The request in REST form: `method`, `url` with its query, `body`."""
        in_path = {name for _, name, _, _ in string.Formatter().parse(self.path) if name}
        query = {key: value for key, value in self.message.items() if key not in in_path | {self.body}}
        url = f"https://{self.host}/{self.path.format(**self.message)}"
        sent = {"method": self.method, "url": url + (f"?{urlencode(query)}" if query else "")}
        return sent | ({"body": self.message[self.body]} if self.body else {})


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

    def hosts(self, job: Job) -> int:
        """How many machines an attempt has: so many report how the verb ended."""

    def requests(self, job: Job, attempt: int) -> Sequence[Request]:
        """All that making an attempt sends, in order. The same for the same job and attempt."""

    def observe(self, job: Job) -> Sequence[Resource]:
        """What is there under the job's name, of any attempt, by attempt; whoever's it is."""

    def create(self, job: Job, attempt: int) -> None:
        """Send what `requests` says, but nothing for what is there already."""

    def delete(self, job: Job, resource: Resource) -> None:
        """Remove a resource and all that belongs to it; what is gone already is fine."""
