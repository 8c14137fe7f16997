"""Start: seconds from the start of `tpullm pretrain` to the end of its first step, with the quickstart's model."""

from pathlib import Path

from clock import Clock
from figures import rounded, summary
from quickstart import Quickstart

STARTS = 3
SECONDS = 70.0  # expected on two cores, for the time left


def measure(quickstart: Quickstart, clock: Clock) -> dict:
    """Seconds of the `first` start (the user's cache is empty), of a `second` one and of one that resumes.

    A second start is a new run in a new folder. It finds only the cache of the earlier start.
    """
    first = _first_step(quickstart, quickstart.new_run("start-0"))
    clock.tell("start", 0.1, f"{first:.1f} s to the first step with an empty cache")
    seconds: dict[str, list[float]] = {"second": [], "resumed": []}
    for number in range(1, STARTS + 1):
        run = quickstart.new_run(f"start-{number}")
        for values in seconds.values():
            values.append(_first_step(quickstart, run))
        told = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items())
        clock.tell("start", 0.1 + 0.9 * number / STARTS, f"{number} of {STARTS}: {told}")
    return {"first": rounded(first), **{name: summary(values) for name, values in seconds.items()}}


def _first_step(quickstart: Quickstart, run: Path) -> float:
    return quickstart.pretrain(run, 1, log_every=1, cache="start")[0]
