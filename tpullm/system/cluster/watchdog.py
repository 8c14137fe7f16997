"""Does the training of every host make progress? A host that hangs is named, and the run ends; a slow one is named.

The training loop says what its thread does: `with watchdog.of("data")`, and `watchdog.at(step)` after each step. A
thread of each host counts the seconds since it last said something. The heartbeats carry that to host 0. When one host
hangs, all hosts do soon, since each waits for the others in a collective. After the recipe's patience the host that is
behind is named as the cause. Every host writes the stacks of all its threads, and all end with exit code 75.

Nothing counts before all hosts have ended their first step, except waiting for data: a step compiles first. Seconds in
which the whole process was stopped do not count. A thread of C++ that never gives back Python's lock stops the
heartbeats too; such a host is gone after `channel.SECONDS_SILENT`.
"""

import contextlib
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pydantic

from tpullm.system import log, storage
from tpullm.system.cluster import channel as channels
from tpullm.system.cluster.channel import Channel, Message
from tpullm.system.errors import TRY_AGAIN
from tpullm.system.words import moment

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_WARNINGS = 600.0
LEAST_COST = 0.1  # of a step, for a warning about a slow host

# In the order in which a step goes through them, with the words for people. `start` is not watched.
PHASES = {
    "start": "compiling",
    "data": "waiting for data",
    "answers": "answering prompts",
    "step": "in a step",
    "evaluate": "evaluating",
    "save": "saving",
}


@pydantic.dataclasses.dataclass(frozen=True, config={"strict": True})
class Progress:
    """What a host's heartbeat says of its training; `ValueError` if another host says something else.

    Args:
        step: that it ended last.
        phase: what its thread does now, a key of `PHASES`.
        idle_seconds: since the thread said something.
        data_seconds: that it has waited for data.
        place: the innermost line of this package where the thread is, in words.
    """

    step: int
    phase: Literal[tuple(PHASES)]
    idle_seconds: float
    data_seconds: float
    place: str = ""

    def rank(self) -> tuple[int, int]:
        """How far the training is; the least of all hosts is behind."""
        return self.step, list(PHASES).index(self.phase)


class Watchdog:
    """Watches one training. A context manager; the thread that enters it is the one that is watched.

    Args:
        folder: of the stage; the stacks go into its folder `stacks`.
        patience_seconds: without progress. 0 never ends a training.
        channel: to the other hosts. All hosts must have entered theirs before one of them ends a step.
    """

    def __init__(self, folder: Path, patience_seconds: float, channel: Channel | None):
        self._folder, self._patience, self._channel = folder / "stacks", patience_seconds, channel
        self._step, self._phase, self._moves = 0, "start", 0
        self._idle = self._data = 0.0
        self._told: dict[int, Progress] = {}  # on host 0: by host
        self._compared, self._warned = time.monotonic(), -SECONDS_BETWEEN_WARNINGS
        self._before: dict[int, Progress] = {}  # when the hosts were compared last
        self._closing = threading.Event()
        self._watched: int | None = None  # the identifier of the thread
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._watched = threading.get_ident()
        if self._channel:
            self._channel.handlers |= {"beat": self._hear, "stacks": lambda *_: self._write()}
            self._channel.status = lambda: {"training": asdict(self._progress())}
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._thread.join()
        if self._channel:
            self._channel.status = dict

    @contextlib.contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Inside, the thread does that; a key of `PHASES`."""
        before, began = self._phase, time.monotonic()
        self._move(phase)
        try:
            yield
        finally:
            self._data += (time.monotonic() - began) * (phase == "data")
            self._move(before)

    def at(self, step: int) -> None:
        """The step ends on this host; its devices may still compute it."""
        self._step = step
        self._move("step")

    def each(self, work: Callable) -> Callable:
        """`work`, whose every call is progress."""

        def moved(*arguments: Any) -> Any:
            self._move(self._phase)
            return work(*arguments)

        return moved

    def _move(self, phase: str) -> None:
        self._phase = phase
        self._moves += 1

    def _progress(self) -> Progress:
        frame = sys._current_frames().get(self._watched)
        while frame and Path(__file__).parents[2] not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        place = f", in {Path(frame.f_code.co_filename).name} line {frame.f_lineno}" if frame else ""
        return Progress(self._step, self._phase, self._idle, self._data, place)

    def _watch(self) -> None:
        seen, before = self._moves, time.monotonic()
        seconds = min(SECONDS_BETWEEN_LOOKS, self._patience / 4 or SECONDS_BETWEEN_LOOKS)
        while not self._closing.wait(seconds):
            now = time.monotonic()
            if self._moves != seen or self._phase == "start":
                seen, self._idle = self._moves, 0.0
            else:
                self._idle += min(now - before, 2 * seconds)  # more than that: the process was stopped
            before = now
            if self._channel is None or self._channel.index == 0:
                self._judge()

    def _judge(self) -> None:
        """On host 0: end the run if a host hangs, and name a host that is slow."""
        hosts = {0: self._progress()} | self._told
        if (host := hanging_host(hosts, self._patience or math.inf)) is None:
            return self._compare(hosts) if self._channel else None
        longest = max(each.idle_seconds for each in hosts.values())
        if self._channel:
            self._channel.broadcast({"kind": "stacks"})  # each host writes them before it hears of the end
            who, resume = self._channel.called(host), channels.RESUME
        else:
            self._write()
            who, resume = "training", "the same command resumes from the last checkpoint"
        step = f"after step {hosts[host].step:,}" if hosts[host].step else "in its first step"
        alike = len(hosts) > 1 and len({each.rank() for each in hosts.values()}) == 1
        line = (
            f"{who} made no progress for {moment(longest)}: {step} it is {PHASES[hosts[host].phase]}"
            f"{hosts[host].place}{', as all hosts are (a device or the network may hang)' if alike else ''}; "
            f"the stacks of all threads are in {self._folder}; {resume}"
        )
        if self._channel:
            self._channel.end(host, line)
        else:
            channels.end_process(line, TRY_AGAIN)

    def _compare(self, hosts: dict[int, Progress]) -> None:
        """Warn now and then about a host that waits longer for its data than the others do: all wait for it then.

        What a host computes is the same as on the others, and slow devices make all hosts wait alike, so they are not
        seen here.
        """
        now = time.monotonic()
        if now - self._compared < 60.0:
            return
        line = slow_host(self._before, hosts, now - self._compared, self._channel.names)
        self._before, self._compared = dict(hosts), now
        if line and now - self._warned >= SECONDS_BETWEEN_WARNINGS:
            self._warned = now
            log.warn(line)

    def _hear(self, sender: int, message: Message) -> None:
        if "training" in message:
            self._told[sender] = Progress(**message["training"])

    def _write(self) -> None:
        """Write the stacks of this host's threads, in a thread: the storage may be what hangs."""
        host = self._channel.index if self._channel else 0
        text, names = f"host {host}, {self._progress()}\n", {each.ident: each.name for each in threading.enumerate()}
        for thread, frame in sys._current_frames().items():  # the innermost call is last
            text += f"\nthread {names.get(thread, thread)}:\n{''.join(traceback.format_stack(frame))}"
        given = (self._folder / f"host-{host:04d}.txt", text)
        writing = threading.Thread(target=storage.write_text, args=given, daemon=True)
        writing.start()
        writing.join(15.0)


def hanging_host(hosts: Mapping[int, Progress], patience_seconds: float) -> int | None:
    """The host that keeps all from going on; None if no host was idle for so long, or the others wait for a compiler.

    Reading data waits for no other host, so a host that was idle in that is the cause, even if another is behind.
    """
    idle = [host for host, progress in hosts.items() if progress.idle_seconds >= patience_seconds]
    by_itself = [host for host in idle if hosts[host].phase == "data"]
    candidates = by_itself or (hosts if idle else [])
    behind = min(candidates, key=lambda host: (*hosts[host].rank(), -hosts[host].idle_seconds), default=None)
    return None if behind is None or hosts[behind].phase == "start" else behind


def slow_host(before: dict[int, Progress], after: dict[int, Progress], seconds: float, names: list[str]) -> str:
    """A line about the host whose data costs more than `LEAST_COST` of a step; an empty text if none does.

    The cost is an upper bound: a host whose devices are still busy waits for its data at no cost.

    Args:
        before: progress of the hosts earlier.
        after: the same `seconds` later.
    """
    steps = {host: after[host].step - before[host].step for host in before.keys() & after.keys()}
    if len(steps) < len(names) or min(steps.values()) < 1:
        return ""
    waits = {host: (after[host].data_seconds - before[host].data_seconds) / steps[host] for host in steps}
    slow = max(waits, key=waits.get)
    next_wait = max(wait for host, wait in waits.items() if host != slow)
    step_seconds = seconds / steps[slow]
    if (cost := (waits[slow] - next_wait) / step_seconds) < LEAST_COST:
        return ""
    return (
        f"host {slow} ({names[slow]}) is slower than the others: in each step it waits {moment(waits[slow])} for "
        f"its data, no other more than {moment(next_wait)}; that costs up to {cost:.0%} of a step"
    )
