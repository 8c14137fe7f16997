"""How a training's thread waits: one step ahead of the devices, and never deaf to Ctrl-C and SIGTERM.

A step is dispatched while the device computes the one before it, and none after a step of more than a second. So a stop
waits for one step at most. The thread waits in Python, so a signal is noticed at once, and the other hosts are asked at
once.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tpullm.model.platform import long_step_seconds
from tpullm.run.hours import Hours
from tpullm.system.cluster import hosts
from tpullm.system.cluster.requests import Requests
from tpullm.system.cluster.watchdog import PHASES, Watchdog
from tpullm.system.log import warn
from tpullm.system.process import memory
from tpullm.training.meter import Meter

SECONDS_BETWEEN_LOOKS = 0.002


class Phases:
    """What the training's thread does, for the hours of the report and for the watchdog."""

    def __init__(self, directory: Path, patience_minutes: float):
        self.hours, self.watchdog = Hours(), Watchdog(directory, 60 * patience_minutes, hosts.connection())

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Inside, the thread does that: a key of `hours.KINDS`."""
        watched = self.watchdog.of(kind) if kind in PHASES else contextlib.nullcontext()
        with self.hours.of(kind), watched:
            yield


class Pace:
    """Waits for the steps that were dispatched, and hears a stop while it waits.

    Args:
        first: steps that are done.
        stopped: whether a signal came.
        ahead: whether the next step may be dispatched before this one is computed.
    """

    def __init__(self, meter: Meter, first: int, stopped: Callable[[], bool], ahead: bool):
        self._meter, self._ahead, self.stopped = meter, ahead, stopped
        self._requests = Requests(first, hosts.connection())
        self._last, self._seconds = time.monotonic(), float("inf")
        memory.watch()

    def wait(self) -> None:
        """After a dispatch: wait until no more than one step is in flight, so that the device never waits for the host.

        A stop has to wait for all steps that were dispatched, so after long steps none is in flight: the device waits
        for the host for a few milliseconds.
        """
        self._wait(int(self._ahead and self._seconds <= long_step_seconds()))
        memory.settle()
        now = time.monotonic()
        self._seconds, self._last = now - self._last, now

    def catch_up(self) -> None:
        """Wait until all steps are computed."""
        self._wait(0)

    def ended(self, step: int, asks: list[str]) -> set[str]:
        """At the end of `step`: what all hosts do now, of what this host and the others ask for.

        Args:
            asks: besides `stop` after a signal.
        """
        return self._requests.ended(step, asks + ["stop"] * self.stopped())

    def _wait(self, ahead: int) -> None:
        while (oldest := self._meter.oldest(ahead)) is not None and not oldest.is_ready():
            if self.stopped():  # at once, so that all hosts stop after this step
                self._requests.ask("stop")
            time.sleep(SECONDS_BETWEEN_LOOKS)  # in Python: a signal is not heard while JAX waits
        if not ahead:  # a step's memory is freed a moment after its results are ready; the next one takes as much
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._meter.read(ahead)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yield `stopped()`: whether Ctrl-C or SIGTERM came. A second Ctrl-C ends at once.

    A shell has what runs in the background ignore Ctrl-C, which is meant for another program; only SIGTERM stops it.
    """
    asked = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        warn("stopping after this step; once more to stop at once, without saving")

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    old = {number: signal.signal(number, ask) for number in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
