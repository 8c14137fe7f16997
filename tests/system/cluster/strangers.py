"""Hostile connections: what strangers send to the port of host 0, each kind by its name, drawn by a seed."""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE = 60.0  # seconds after which a stranger gives up


def hello(**changed) -> bytes:
    """The first line of host 1 of 2, with changes."""
    said = {"index": 1, "count": 2, "name": "stranger", "number": "0" * 32} | changed
    return json.dumps(said).encode() + b"\n"


# Sent at once; then the stranger waits.
WORDS = {
    "silence": b"",
    "an empty line": b"\n",
    "an empty object": b"{}\n",
    "a number": b"1" * 3000 + b"\n",
    "deep brackets without an end": b"[" * 100_000,
    "no text": b"\xff\xfe\x00\xd8\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "half a line": hello()[:20],
    "an impostor without a proof": hello(),
    "an impostor with a wrong proof": hello() + b'{"proof": "' + b"0" * 64 + b'"}\n',
    "an impostor with a proof that is no text": hello() + b'{"proof": [[]]}\n',
    "an impostor as host 0": hello(index=0),
    "a wrong count": hello(count=3),
    "a second hello with a wrong count": hello() + hello(count=3),
    "an index that is a list": hello(index=[1]),
    "an index that is a fraction": hello(index=1.0),
    "an index below zero": hello(index=-1),
    "a huge index": hello(index=10**300),
    "a name of control characters": hello(name="\x1b[2J\x07"),
    "a name of half characters": hello(name="\ud800"),
    "a long name": hello(name="n" * 3000),
}


def _drip(peer: socket.socket, chance: random.Random, stop: threading.Event) -> None:
    for byte in hello():
        peer.sendall(bytes([byte]))
        if stop.wait(0.2):
            return


def _flood(peer: socket.socket, chance: random.Random, stop: threading.Event) -> None:
    for _ in range(10_000):  # 640 MB, if somebody takes it
        peer.sendall(b"x" * 65_536)
        if stop.is_set():
            return


def _reset(peer: socket.socket, chance: random.Random, stop: threading.Event) -> None:
    peer.sendall(hello()[: chance.randrange(60)])
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _noise(peer: socket.socket, chance: random.Random, stop: threading.Event) -> None:
    peer.sendall(chance.randbytes(chance.randrange(1, 5000)))


def _impostor(peer: socket.socket, chance: random.Random, stop: threading.Event) -> None:
    """Waits for the number as a host does, and then has no secret."""
    peer.settimeout(PATIENCE)
    peer.sendall(hello())
    peer.recv(1000)
    peer.sendall(json.dumps({"proof": chance.choice(["", "0" * 64, "\ud800", "é", 7, None])}).encode() + b"\n")


ACTS: dict[str, Callable[[socket.socket, random.Random, threading.Event], None]] = {
    "a byte at a time": _drip,
    "an endless line": _flood,
    "a reset": _reset,
    "noise": _noise,
}
KINDS = [*WORDS, *ACTS]
IMPOSTOR = "an impostor who speaks as a host"  # without a secret it is one
ACTS_OF_ALL = ACTS | {IMPOSTOR: _impostor}


@contextlib.contextmanager
def knocking(port: int, kinds: list[str], seed: int = 0) -> Iterator[list[str]]:
    """Strangers of these kinds knock at the port, all at once, and stay; yields the kinds that have spoken so far."""
    spoken, stop = [], threading.Event()

    def knock(number: int, kind: str) -> None:
        chance = random.Random(seed * 1_000_003 + number)
        with contextlib.suppress(OSError), _connected(port, stop) as peer:  # it may be dropped at any time
            try:
                peer.sendall(WORDS[kind]) if kind in WORDS else ACTS_OF_ALL[kind](peer, chance, stop)
            finally:
                spoken.append(kind)
            stop.wait(chance.choice([0, PATIENCE]))

    threads = [threading.Thread(target=knock, args=each, daemon=True) for each in enumerate(kinds)]
    for thread in threads:
        thread.start()
    try:
        yield spoken
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def _connected(port: int, stop: threading.Event) -> socket.socket:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:  # host 0 does not listen yet
            if stop.wait(0.02) or time.monotonic() > until:
                raise
