"""What is asked for while training goes on (to stop, to save now): every host must do it after the same step.

The hosts' programs run ahead of their devices, each at its own pace, and none may wait for another at every step. So
when something is asked for, host 0 has every host hold at the next end of a step and say which it is (the thread of the
channel answers: the main thread may be waiting for its devices, which wait for another host); the latest of them is the
step for all. A step without a request costs a lock.
"""

from collections.abc import Iterable

from tpullm.cluster.channel import Channel

Message = dict


class Requests:
    """Requests of one training. On one host each is granted for the very step at whose end it is made.

    Args:
        first: steps that are done.
        channel: to the other hosts; all have made their `Requests` before one of them ends a step.
    """

    def __init__(self, first: int, channel: Channel | None):
        self._ahead = first + 1  # the earliest step whose end is still to come here
        self._held = False
        # Pairs: asked for twice, by two hosts, the second grant may come before the step of the first is over here.
        self._granted: set[tuple[str, int]] = set()
        self._made: set[str] = set()  # by this host
        self._open: set[str] = set()  # on host 0: being decided
        self._waiting: set[str] = set()  # on host 0: to be decided next
        self._answers: dict[int, int] = {}
        self._channel = channel
        if channel:
            handlers = {"ask": self._ask, "hold": self._hold, "held": self._collect, "grant": self._grant}
            channel.handlers |= handlers

    def ended(self, step: int, wanted: Iterable[str]) -> set[str]:
        """At the end of `step`: ask for what is wanted; what all hosts do now."""
        if self._channel is None:
            return set(wanted)
        for what in set(wanted) - self._made:
            self._made.add(what)
            self._channel.send(0, {"kind": "ask", "what": what})
        if self._held:
            self._channel.wait(lambda: not self._held)
        with self._channel.changed:
            if self._held:  # between the two lines above
                return self.ended(step, wanted)
            now = {what for what, at in self._granted if at == step}
            self._granted = {grant for grant in self._granted if grant[1] > step}
            self._made -= now
            self._ahead = step + 1
        return now

    def _ask(self, sender: int, message: Message) -> None:
        """On host 0: someone asks; one decision at a time."""
        with self._channel.changed:
            what = message["what"]
            if what not in self._open | {granted for granted, _ in self._granted}:
                self._waiting.add(what)
            if self._open or not self._waiting:
                return
            self._open, self._waiting, self._answers = self._waiting, set(), {}
        self._channel.broadcast({"kind": "hold"})

    def _hold(self, sender: int, message: Message) -> None:
        """Hold at the next end of a step, and say which."""
        with self._channel.changed:
            self._held = True
            ahead = self._ahead
        self._channel.send(0, {"kind": "held", "step": ahead})

    def _collect(self, sender: int, message: Message) -> None:
        """On host 0: when all have answered, the latest step is that of all."""
        with self._channel.changed:
            self._answers[sender] = message["step"]
            if len(self._answers) < len(self._channel.names):
                return
            step = max(self._answers.values())
            granted, self._open = [[what, step] for what in self._open], set()
        self._channel.broadcast({"kind": "grant", "granted": granted})

    def _grant(self, sender: int, message: Message) -> None:
        with self._channel.changed:
            self._granted |= {(what, step) for what, step in message["granted"]}
            self._held = False
            self._channel.changed.notify_all()
