"""Requests during training (`stop`, `save`), which all hosts must do after the same step.

Hosts dispatch steps ahead of their devices, each at its own pace, and no step may wait for another host. On a request,
host 0 tells every host to hold at the end of its current step and to answer with that step. The channel's thread
answers, since the main thread may be waiting for devices that wait for another host. The latest step is the step for
all. A step without a request costs one lock. JAX's `multihost_utils.reached_preemption_sync_point` does the same for
SIGTERM only, whose handler it replaces; requests here also come from Ctrl-C and from a clock.
"""

from collections.abc import Iterable

from tpullm.system.cluster.channel import Channel

Message = dict


class Requests:
    """Requests of one training. On one host each is granted for the step at whose end it is made.

    Args:
        first: steps that are done.
        channel: to the other hosts. All hosts must have made their `Requests` before one of them ends a step.
    """

    def __init__(self, first: int, channel: Channel | None):
        self._ahead = first + 1  # the earliest step that has not ended on this host
        self._held = False
        # Pairs, since two hosts may ask for the same: the second grant may arrive before the step of the first ends.
        self._granted: set[tuple[str, int]] = set()
        self._made: set[str] = set()  # by this host
        self._deciding = False  # on host 0: from the first `hold` to the last `grant` of a round
        self._waiting: set[str] = set()  # on host 0: those that are not decided
        self._answers: dict[int, int] = {}  # on host 0: the step at which each host holds
        self._channel = channel
        if channel:
            channel.handlers |= {"ask": self._ask, "hold": self._hold, "held": self._collect, "grant": self._grant}

    def ask(self, what: str) -> None:
        """Make a request before the end of the current step; on one host the end of the step is soon enough."""
        if self._channel is not None and what not in self._made:
            self._made.add(what)
            self._channel.send(0, {"kind": "ask", "what": what, "step": self._ahead})

    def ended(self, step: int, wanted: Iterable[str]) -> set[str]:
        """At the end of `step`: make the requests `wanted`; returns what all hosts do after this step."""
        if self._channel is None:
            return set(wanted)
        for what in wanted:
            self.ask(what)
        with self._channel.changed:  # `wait` releases this lock too
            self._channel.wait(lambda: not self._held)
            now = {what for what, at in self._granted if at == step}
            self._granted = {grant for grant in self._granted if grant[1] > step}
            self._made -= now
            self._ahead = step + 1
        return now

    def _ask(self, sender: int, message: Message) -> None:
        """On host 0: a host makes a request at the end of a step."""
        what, step = message["what"], message["step"]
        with self._channel.changed:
            # The host may have ended the step of an earlier grant that this host has still to end.
            if not any(what == other and at >= step for other, at in self._granted):
                self._waiting.add(what)
        self._decide_next()

    def _decide_next(self) -> None:
        """On host 0: have all hosts hold for the requests that wait, unless a round is under way.

        A `hold` that overtook the `grant` of the round before would be ended by it, and its host would run on.
        """
        with self._channel.changed:
            if self._deciding or not self._waiting:
                return
            self._deciding = True
        self._channel.broadcast({"kind": "hold"})

    def _hold(self, sender: int, message: Message) -> None:
        """Hold at the end of the current step, and answer with that step."""
        with self._channel.changed:
            self._held = True
            ahead = self._ahead
        self._channel.send(0, {"kind": "held", "step": ahead})

    def _collect(self, sender: int, message: Message) -> None:
        """On host 0: when all hosts have answered, grant the requests that have come by then for the latest step.

        A host that made one meanwhile holds at that step, or answered later.
        """
        with self._channel.changed:
            self._answers[sender] = message["step"]
            if len(self._answers) < len(self._channel.names):
                return
            step = max(self._answers.values())
            granted = [[what, step] for what in sorted(self._waiting)]
            self._waiting, self._answers = set(), {}
        self._channel.broadcast({"kind": "grant", "granted": granted})
        with self._channel.changed:
            self._deciding = False
        self._decide_next()

    def _grant(self, sender: int, message: Message) -> None:
        with self._channel.changed:
            self._granted |= {(what, step) for what, step in message["granted"]}
            self._held = False
            self._channel.changed.notify_all()
