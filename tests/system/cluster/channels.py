"""Channels of several hosts in one process, connected by sockets."""

import socket

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
