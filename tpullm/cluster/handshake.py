"""How the hosts meet: each connects to host 0, which answers with the names of all when all are there."""

import contextlib
import json
import random
import socket
import time

from tpullm.cluster.channel import Channel, Message
from tpullm.errors import UserError


def free_port() -> int:
    """A free TCP port, to be bound right away.

    Not one that the system would choose: in about one of a thousand starts on a busy machine the system gave such a
    port to another process in the meantime.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise UserError("hosts: no port between 20,000 and 32,000 is free; stop what listens on them")


def receive(port: int, count: int, name: str, seconds: float, notice: Message) -> Channel:
    """Host 0: wait until all other hosts are connected, then send them the names of all and `notice`.

    Raises:
        UserError: the port can't be used, hosts are missing after `seconds`, or two hosts contradict each other.
    """
    names, peers = {0: name}, {}
    try:
        server = socket.create_server(("", port), backlog=count)
    except OSError as error:
        raise UserError(f"hosts.coordinator: port {port} can't be used ({error.strerror}); choose another") from None
    until = time.monotonic() + seconds
    with server:
        while len(names) < count:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                peer, _ = server.accept()
                peer.settimeout(5)
                hello = _read(peer)
            except TimeoutError:
                missing = [str(host) for host in range(count) if host not in names]
                problem = f"no answer from host(s) {', '.join(missing)} of {count} in {seconds:.0f} s; start them all"
                raise _refused(peers, problem) from None
            except (OSError, ValueError):
                continue  # not one of the hosts
            host = hello.get("index")
            if hello.get("count") != count or host not in range(1, count) or host in names:
                peers[-1] = peer
                told = f"index {host} of {hello.get('count')}"
                why = f"which {names[host]} is already" if host in names else f"and host 0 counts {count}"
                raise _refused(peers, f"hosts: {hello.get('name')} says it is {told}, {why}; correct the settings")
            names[host], peers[host] = hello["name"], peer
    ordered = [names[host] for host in range(count)]
    for peer in peers.values():
        _write(peer, {"names": ordered, **notice})
    return Channel(0, ordered, peers)


def connect(host: str, port: int, index: int, count: int, name: str, seconds: float) -> tuple[Channel, Message]:
    """Any other host: connect to host 0; the channel, and the answer with the notice of `receive`.

    Raises:
        UserError: host 0 does not answer within `seconds`, or refuses.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=max(1.0, until - time.monotonic()))
            _write(peer, {"index": index, "count": count, "name": name})
            peer.settimeout(max(1.0, until - time.monotonic()))
            answer = _read(peer)
            break
        except (OSError, ValueError) as error:
            if time.monotonic() > until - 1:
                raise UserError(
                    f"hosts.coordinator: no answer from host 0 at {host}:{port} in {seconds:.0f} s ({error}); "
                    "start all hosts, and give all the address of host 0"
                ) from None
            time.sleep(0.2)
    if "refused" in answer:
        raise UserError(answer["refused"])
    return Channel(index, answer["names"], {0: peer}), answer


def _read(peer: socket.socket) -> Message:
    """One line. Unbuffered: the bytes after it are for the channel."""
    return json.loads(peer.makefile("rb", buffering=0).readline(1 << 20))


def _write(peer: socket.socket, message: Message) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _refused(peers: dict[int, socket.socket], problem: str) -> UserError:
    for peer in peers.values():
        with contextlib.suppress(OSError):
            _write(peer, {"refused": problem})
    return UserError(problem)
