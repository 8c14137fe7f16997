"""What several tests of hosts share: channels of several hosts in one process, connected by sockets."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tpullm.system.cluster import channel
from tpullm.system.cluster.channel import Channel, Connection

MADE: list[Channel] = []  # by the test that runs


def connect(count: int = 3) -> list[Channel]:
    """Channels of all hosts, not started."""
    pairs = {host: tuple(map(Connection, socket.socketpair())) for host in range(1, count)}
    names = [f"name{host}" for host in range(count)]
    made = [Channel(0, names, {host: pair[0] for host, pair in pairs.items()})]
    made += [Channel(host, names, {0: pair[1]}) for host, pair in pairs.items()]
    MADE.extend(made)
    return made


def end_threads() -> None:
    """End the threads of all channels, so that they do nothing in later tests."""
    for one in MADE:
        one._closing.set()
        for peer in one._peers.values():
            peer.hang_up()
    MADE.clear()


class Ended(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def ended(monkeypatch) -> Iterator[list[tuple[str, int]]]:
    """The lines and codes with which hosts exited."""
    found: list[tuple[str, int]] = []

    def end(line: str, code: int) -> None:
        found.append((line, code))
        raise Ended

    monkeypatch.setattr(channel, "end_process", end)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(channel, "SECONDS_TO_UNWIND", 0.2)
    yield found
    end_threads()
