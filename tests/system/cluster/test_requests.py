"""Hosts that run ahead of each other do what is asked for after the same step."""

import random

import pytest

from tpullm.system.cluster.requests import Requests


class Threads:
    """Hosts whose threads take turns by chance, in one thread, so that a seed gives one order.

    Each host has a main thread, which ends steps. Host 0 has a thread for each other host, and any other host has one:
    it handles what arrives over that connection, one message after another. Where a thread sends a message (and holds
    no lock) the others may go on first.
    """

    def __init__(self, count: int, chance: random.Random):
        self.chance, self.channels = chance, [Line(self, host, count) for host in range(count)]
        self.arrived = {(0, host): [] for host in range(1, count)} | {(host, 0): [] for host in range(1, count)}
        self.busy: set[tuple[int, int]] = set()

    def others_go_on(self) -> None:
        """Let threads that are in no other call handle messages, a few or none."""
        while (ready := self.ready()) and self.chance.random() < 0.5:
            self.handle(self.chance.choice(ready))

    def ready(self) -> list[tuple[int, int]]:
        """The connections, as (receiver, sender), on which a message waits for a thread that is free."""
        return [line for line, messages in self.arrived.items() if messages and line not in self.busy]

    def handle(self, line: tuple[int, int]) -> None:
        self.busy.add(line)
        message = self.arrived[line].pop(0)
        self.channels[line[0]].handlers[message["kind"]](line[1], message)
        self.busy.remove(line)


class Line:
    """Stands for the channel of one host among `Threads`."""

    def __init__(self, threads: Threads, index: int, count: int):
        self._threads, self.index, self.names, self.handlers = threads, index, [""] * count, {}
        self.changed, self._locked = self, 0

    def __enter__(self):
        self._locked += 1

    def __exit__(self, *error):
        self._locked -= 1

    def notify_all(self):
        assert self._locked

    def send(self, host, message):
        if not self._locked:
            self._threads.others_go_on()
        if host == self.index:
            return self.handlers[message["kind"]](host, message)
        self._threads.arrived[host, self.index].append(message)

    def broadcast(self, message):
        for host in [*range(1, len(self.names)), 0]:
            self.send(host, message)

    def wait(self, ready):
        locked, self._locked = self._locked, 0
        while not ready():
            lines = self._threads.ready()
            assert lines, "a host waits for ever"
            self._threads.handle(self._threads.chance.choice(lines))
        self._locked = locked


@pytest.mark.parametrize("count", [2, 3])
def test_in_any_order_of_threads_what_is_asked_for_is_granted_at_one_step_on_all_hosts(count):
    """Asked for at random steps by random hosts, again and again; hosts are up to three steps apart."""
    for seed in range(150):
        chance = random.Random(seed)
        threads = Threads(count, chance)
        requests = [Requests(0, channel) for channel in threads.channels]
        done, wanted, last = [0] * count, [set() for _ in range(count)], 24
        asked, granted = [[] for _ in range(count)], [[] for _ in range(count)]
        while min(done) < last:
            host = chance.choice([host for host in range(count) if done[host] < min(last, min(done) + 3)])
            if done[host] < last - 8 and chance.random() < 0.2:
                what = chance.choice(["save", "stop"])
                wanted[host].add(what)
                asked[host].append((what, done[host] + 1))
            now = requests[host].ended(done[host] + 1, wanted[host])
            done[host] += 1
            granted[host] += [(what, done[host]) for what in sorted(now)]
            wanted[host] -= now
            threads.others_go_on()
            while done[host] >= last - 4 and (ready := threads.ready()):  # so that all is decided before the end
                threads.handle(ready[0])
        for host in range(count):
            assert granted[host] == granted[0], f"seed {seed}"
            for what, step in asked[host]:
                assert any(what == other and at >= step for other, at in granted[host]), f"seed {seed}: lost"


def test_one_host_does_at_once_what_it_asks_for():
    alone = Requests(0, None)
    assert alone.ended(1, []) == set() and alone.ended(2, ["stop"]) == {"stop"}
