"""Where the hours of a training went, over all processes that worked on it: `hours.jsonl`, to which lines are appended.

Goodput is the share of the time that went into updates that the result is made of. The rest is named: starting, data,
compiling, restoring, saving, evaluating, skipped steps, and work that was lost because a process ended after its last
checkpoint. `metrics.jsonl` can't tell this: its lines after the last checkpoint are dropped when training resumes.
"""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

FILE = "hours.jsonl"
KINDS = ("start", "compile", "restore", "data", "save", "evaluate", "check", "lost", "skipped", "train")


_STARTED = time.time()  # of this process: after a roll-back it trains again, and is counted anew, but not interrupted


class Hours:
    """Measures what one process does, for `hours.jsonl`.

    Attributes:
        resumed: the step that the process resumes from.
        seconds: by kind.
    """

    def __init__(self) -> None:
        self.resumed, self.seconds = 0, dict.fromkeys(KINDS, 0.0)
        self._wall, self._began = time.time(), time.monotonic()

    @contextlib.contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Count the time inside as that of `kind`, one of `KINDS`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - began

    def line(self, step: int, skipped: int) -> dict:
        """What to append after `step`: seconds since the process began, by kind, of `skipped` steps too.

        What is not of another kind is `train`.
        """
        seconds = {kind: round(spent, 3) for kind, spent in self.seconds.items() if spent}
        seconds["all"] = round(time.monotonic() - self._began, 3)
        now = {"process": self._wall, "ended": time.time(), "started": _STARTED}
        return now | {"resumed": self.resumed, "step": step, "skipped": skipped, "seconds": seconds}


def seconds_by_kind(lines: list[dict]) -> dict[str, float]:
    """Seconds by kind over all processes, in the order of `KINDS`, from the lines of `hours.jsonl`.

    The time between the last line of a process and the begin of the next one is `start`: nobody worked. Only that is by
    the clock of the machine, so an hour by which the clock is set is counted only if it was set meanwhile. Steps that
    a later process made again are `lost`.
    """
    processes: dict[float, list[dict]] = {}
    for line in lines:
        processes.setdefault(line["process"], []).append(line)
    total = dict.fromkeys(KINDS, 0.0)
    for (*_, last), after in itertools.zip_longest(processes.values(), list(processes.values())[1:]):
        known = {kind: seconds for kind, seconds in last["seconds"].items() if kind != "all"}
        worked, steps = last["seconds"]["all"] - sum(known.values()), last["step"] - last["resumed"]
        lost = min(steps, max(0, last["step"] - after[0]["resumed"])) if after else 0
        skipped = min(last["skipped"], steps - lost)
        for kind, count in (("lost", lost), ("skipped", skipped), ("train", steps - lost - skipped)):
            known[kind] = known.get(kind, 0.0) + worked * count / max(steps, 1)
        for kind, seconds in known.items():
            total[kind] += seconds
        if after:
            ended = last.get("ended", last["process"] + last["seconds"]["all"])  # older versions did not note it
            total["start"] += max(0.0, after[0]["process"] - ended)
    return total


def share_kept(restart: float, until_saved: float, between_saves: float, between: float) -> float:
    """The share of the time that goes into steps whose result is kept, if interruptions come at random moments.

    A process that lives for t seconds keeps as many intervals between saves as fit into t - restart - until_saved. With
    interruptions at a constant rate, t is exponential, and this is the mean of the kept seconds over that of t.

    Args:
        restart: seconds from an interruption until a step is computed.
        until_saved: seconds from the step that is saved until its checkpoint is written; training goes on meanwhile.
        between_saves: seconds from one save to the next.
        between: mean seconds from one interruption to the next; 0 if there are none.
    """
    if not between:
        return 1.0
    saves = between_saves / between
    within = saves / -math.expm1(-saves) if saves else 1.0
    return math.exp(-(restart + until_saved) / between - saves) * within


def planned_goodput(lines: list[dict], run: dict | None) -> tuple[int, float]:
    """How often a training was interrupted, and the goodput that its plan expects of that many interruptions.

    Args:
        run: `run` of the plan (`planning.economics.Run`); None if there is no plan.
    """
    started = {line.get("started", line["process"]) for line in lines}
    interruptions, total = len(started) - 1, sum(seconds_by_kind(lines).values())
    if run is None or interruptions < 1:
        return max(0, interruptions), 1.0
    fields = (run[f"{name}_seconds"] for name in ("restart", "save", "between_saves"))
    return interruptions, share_kept(*fields, total / interruptions)


def goodput_in_words(lines: list[dict], run: dict | None = None) -> str:
    """Where the hours went, in words: the goodput, beside it that of the plan, then the rest, the largest first."""
    found = {kind: seconds for kind, seconds in seconds_by_kind(lines).items() if seconds}
    total = sum(found.values()) or 1.0
    rest = sorted((kind for kind in found if kind != "train"), key=found.get, reverse=True)
    shares = ", ".join(f"{kind} {found[kind] / total:.1%}" for kind in rest)
    interruptions, expected = planned_goodput(lines, run)
    beside = f", planned for {interruptions} interruptions {expected:.1%}" if run and interruptions else ""
    return f"goodput {found.get('train', 0.0) / total:.1%}{beside}" + (f" ({shares})" if shares else "")


def read(path: Path) -> list[dict]:
    """The lines of an `hours.jsonl`; none if there is no such file. A line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
