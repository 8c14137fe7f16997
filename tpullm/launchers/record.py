"""What a launch keeps in its run directory, so that whoever watches it next finds it there.

RUN/launch/code/…whl
RUN/launch/NAME/jobs/HASH.json            a job's sheet: what the machines run
RUN/launch/NAME/attempts/0001/asked.json  the attempt was begun, with which sheet
                             /active.json when its machines were first seen
                             /ready/S-H   host H is ready for start S of the verb
                             /ended/H.json  how the verb ended on host H
                             /logs/H.0000.log  what the verb said there, in pieces
                             /over.json   what came of the attempt; it is written before anything is removed
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpullm import storage


@dataclass(frozen=True)
class Ended:
    """How a host ended.

    Args:
        host: which.
        code: the verb's exit code.
        line: its last line.
    """

    host: int
    code: int
    line: str


@dataclass(frozen=True)
class Over:
    """What came of an attempt.

    Args:
        again: the next attempt may go on.
        code: the exit code of the launch otherwise.
        why: one line.
        time: seconds since 1970.
    """

    again: bool
    code: int
    why: str
    time: float


@dataclass(frozen=True)
class Attempt:
    """One attempt, as its folder says.

    Args:
        number: from 1.
        sheet: of the job that it runs.
        active: when its machines were first seen, in seconds since 1970; 0 is not yet.
        starts: how often its hosts were all started.
        ended: the hosts that are finished.
        over: what came of it, if that is known.
    """

    number: int
    sheet: str
    active: float
    starts: int
    ended: tuple[Ended, ...]
    over: Over | None


class State:
    """The folder of one launch.

    Args:
        folder: `Job.folder`.
    """

    def __init__(self, folder: str):
        self.folder = storage.path(folder)

    def attempts(self) -> list[Attempt]:
        """All attempts, by number."""
        return [self._read(int(name)) for name in self._names(self.folder / "attempts") if name.isdigit()]

    def _read(self, number: int) -> Attempt:
        folder = self.of(number)
        names = set(self._names(folder))
        note = lambda name: _json(folder / f"{name}.json") if f"{name}.json" in names else {}  # noqa: E731
        ready = self._names(folder / "ready") if "ready" in names else []
        over = note("over")
        return Attempt(
            number=number,
            sheet=note("asked").get("sheet", ""),
            active=note("active").get("time", 0.0),
            starts=max((int(name.split("-")[0]) for name in ready), default=0),
            ended=tuple(self.ended(number)) if "ended" in names else (),
            over=Over(**over) if over else None,
        )

    def of(self, number: int) -> Path:
        """The folder of an attempt."""
        return self.folder / "attempts" / f"{number:04d}"

    def ask(self, number: int, sheet: str) -> None:
        """Note that an attempt begins."""
        storage.write_json(self.of(number) / "asked.json", {"sheet": sheet, "time": time.time()})

    def saw_active(self, number: int) -> None:
        """Note that the machines of an attempt are there."""
        storage.write_json(self.of(number) / "active.json", {"time": time.time()})

    def judge(self, number: int, over: Over) -> None:
        """Note what came of an attempt."""
        storage.write_json(self.of(number) / "over.json", asdict(over))

    def ready(self, number: int, start: int, host: int) -> None:
        """Note that a host is ready for a start of the verb."""
        storage.write_text(self.of(number) / "ready" / f"{start:04d}-{host:04d}", "")

    def ready_hosts(self, number: int, start: int) -> int:
        """How many hosts are ready for a start of the verb."""
        return sum(name.startswith(f"{start:04d}-") for name in self._names(self.of(number) / "ready"))

    def starts_of(self, number: int, host: int) -> int:
        """The last start that a host was ready for; a machine that was started again goes on from there."""
        ready = [name.split("-") for name in self._names(self.of(number) / "ready")]
        return max((int(start) for start, index in ready if int(index) == host), default=0)

    def end(self, number: int, ended: Ended) -> None:
        """Note how a host ended."""
        storage.write_json(self.of(number) / "ended" / f"{ended.host:04d}.json", asdict(ended))

    def ended(self, number: int) -> list[Ended]:
        """The hosts that have ended."""
        folder = self.of(number) / "ended"
        return [Ended(**_json(folder / name)) for name in self._names(folder) if name.endswith(".json")]

    def logs(self, number: int) -> list[str]:
        """The names of the pieces of the hosts' logs, in order."""
        return self._names(self.of(number) / "logs")

    @staticmethod
    def _names(folder: Path) -> list[str]:
        try:
            return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
