"""The record of a launch in its run directory. Whoever watches the launch next reads it there.

RUN/launch/code/…whl
RUN/launch/NAME/jobs/HASH.json            the specification of a job: what the machines run
RUN/launch/NAME/attempts/0001/asked.json  the attempt was begun, with this specification
                             /active.json when its machines were first seen
                             /secrets/S   the hosts' secret for start S of the verb (`system/cluster/handshake.py`)
                             /ready/S-H   host H is ready for start S of the verb
                             /ended/H.json  how the verb ended on host H
                             /ended/setup-MACHINE.json  why a machine did not come to be a host
                             /logs/H.0000.log  the log of host H, in pieces
                             /outcome.json  how the attempt ended; written before its machines are deleted
"""

import contextlib
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage.mirror import mirrored

OVERTIME = 124  # exit code of a machine whose hours (`max_hours`) are over, as of timeout(1)
PIECE_CHARACTERS = 1 << 18  # an upload sends a piece that has grown whole, so a piece must stay small
_BEGAN = time.time() - time.monotonic()


def clock() -> float:
    """Seconds since 1970. A clock that is set an hour on while this process lives does not end a launch: its machines
    would seem to have had that hour to report."""
    return _BEGAN + time.monotonic()


@dataclass(frozen=True)
class HostExit:
    """How the verb ended on a host.

    Args:
        host: index of the host.
        code: exit code of the verb.
        line: last line of the verb.
    """

    host: int
    code: int
    line: str


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Args:
        retry: another attempt may resume the run.
        code: exit code of the launch if there is no other attempt.
        reason: one line.
        time: seconds since 1970.
    """

    retry: bool
    code: int
    reason: str
    time: float


@dataclass(frozen=True)
class Attempt:
    """What the record says of one attempt.

    Args:
        number: from 1.
        spec: path of the job's specification.
        active: when its machines were first seen, in seconds since 1970; 0 if they were not seen yet.
        starts: the last start of the verb that any host was ready for, from 1; 0 is none.
        exits: of the hosts that have ended.
        outcome: how the attempt ended; None while that is not known.
    """

    number: int
    spec: str
    active: float
    starts: int
    exits: tuple[HostExit, ...]
    outcome: Outcome | None


class Record:
    """The record of one launch.

    Args:
        folder: `Job.folder`.
    """

    def __init__(self, folder: str):
        self.folder = storage.path(folder)

    def attempts(self) -> list[Attempt]:
        """All attempts, by number."""
        return [self._read(int(name)) for name in _visible_names(self.folder / "attempts") if name.isdigit()]

    def _read(self, number: int) -> Attempt:
        folder = self.attempt_folder(number)
        names = set(_visible_names(folder))
        note = lambda name: storage.read_json(folder / f"{name}.json") if f"{name}.json" in names else {}  # noqa: E731
        outcome = note("outcome")
        return Attempt(
            number=number,
            spec=note("asked").get("spec", ""),
            active=note("active").get("time", 0.0),
            starts=max((start for start, _ in self._ready(number)), default=0) if "ready" in names else 0,
            exits=tuple(self.exits(number)) if "ended" in names else (),
            outcome=Outcome(**outcome) if outcome else None,
        )

    def attempt_folder(self, number: int) -> Path:
        """The folder of an attempt."""
        return self.folder / "attempts" / f"{number:04d}"

    def begin(self, number: int, spec: str) -> None:
        """Note that an attempt begins."""
        storage.write_json(self.attempt_folder(number) / "asked.json", {"spec": spec, "time": clock()})

    def saw_active(self, number: int) -> None:
        """Note that the machines of an attempt are there."""
        storage.write_json(self.attempt_folder(number) / "active.json", {"time": clock()})

    def conclude(self, number: int, outcome: Outcome) -> None:
        """Note how an attempt ended."""
        storage.write_json(self.attempt_folder(number) / "outcome.json", asdict(outcome))

    def ready(self, number: int, start: int, host: int) -> None:
        """Note that a host is ready for a start of the verb."""
        storage.write_text(self.attempt_folder(number) / "ready" / f"{start:04d}-{host:04d}", "")

    def share_secret(self, number: int, start: int, secret: str) -> None:
        """Write the hosts' secret for a start of the verb; host 0 does, before it is ready."""
        storage.write_text(self.attempt_folder(number) / "secrets" / f"{start:04d}", secret)

    def secret(self, number: int, start: int) -> str:
        """The hosts' secret for a start of the verb, once all are ready."""
        return (self.attempt_folder(number) / "secrets" / f"{start:04d}").read_text(encoding="utf-8")

    def ready_hosts(self, number: int, start: int) -> int:
        """Number of hosts that are ready for a start of the verb."""
        return sum(ready == start for ready, _ in self._ready(number))

    def last_start(self, number: int, host: int) -> int:
        """The last start that a host was ready for. A machine that was rebooted continues after it."""
        return max((start for start, ready in self._ready(number) if ready == host), default=0)

    def _ready(self, number: int) -> list[tuple[int, int]]:
        """Start and host of each note of `ready`."""
        notes = [name.split("-") for name in _visible_names(self.attempt_folder(number) / "ready")]
        return [(int(start), int(host)) for start, host in notes]

    def add_exit(self, number: int, host_exit: HostExit, machine: str = "") -> None:
        """Note how the verb ended on a host; under the name of the machine where nothing says which host it is."""
        name = machine or f"{host_exit.host:04d}"
        storage.write_json(self.attempt_folder(number) / "ended" / f"{name}.json", asdict(host_exit))

    def exits(self, number: int) -> list[HostExit]:
        """How the verb ended on the hosts that have ended."""
        folder = self.attempt_folder(number) / "ended"
        names = [name for name in _visible_names(folder) if name.endswith(".json")]
        return [HostExit(**storage.read_json(folder / name)) for name in names]

    def logs(self, number: int) -> list[str]:
        """The names of the pieces of the hosts' logs, in order."""
        return _visible_names(self.attempt_folder(number) / "logs")


def _visible_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


class Log:
    """The log of one host, uploaded in pieces while it grows. A writer never waits.

    Args:
        folder: receives the pieces, `HOST.NUMBER.log`.
        host: index of the host.
    """

    def __init__(self, folder: Path, host: int):
        self._mirror, self._host = mirrored(folder), host
        self._number = self._characters = 0  # of the last piece
        self._writing = threading.Lock()

    def line(self, text: str) -> None:
        """Add a line, and write it to stderr (the machine's serial console keeps it)."""
        sys.stderr.write(text + "\n")
        with self._writing:
            if self._characters > PIECE_CHARACTERS:
                self._number, self._characters = self._number + 1, 0
            self._characters += len(text) + 1
            with open(self._mirror.folder / f"{self._host:04d}.{self._number:04d}.log", "a", encoding="utf-8") as piece:
                piece.write(text + "\n")
        self._mirror.changed()

    def close(self) -> None:
        """Upload the rest, if the storage answers."""
        with contextlib.suppress(UserError):
            self._mirror.close()
