"""Whatever strangers send to the port of host 0, the hosts meet."""

import contextlib
import errno
import json
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tpullm.system.cluster import handshake

WAIT = 60.0  # seconds; far more than any machine takes, and then a stranger gives up


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
    **{f"the index {index}": hello(index=index) for index in ([1], 1.0, -1, 10**300)},
    "a name of control characters": hello(name="\x1b[2J\x07"),
    "a name of half characters": hello(name="\ud800"),
    "a long name": hello(name="n" * 3000),
    "a field of Python's": hello(__dataclass_self__=1),
    "noise": random.Random(0).randbytes(3000),
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


def _impostor(peer: socket.socket, chance: random.Random, stop: threading.Event) -> None:
    """Waits for the number as a host does, and then has no secret."""
    peer.settimeout(WAIT)
    peer.sendall(hello())
    peer.recv(1000)
    peer.sendall(json.dumps({"proof": chance.choice(["", "0" * 64, "\ud800", "é", 7, None])}).encode() + b"\n")


ACTS = {"a byte at a time": _drip, "an endless line": _flood, "a reset": _reset}
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
            stop.wait(chance.choice([0, WAIT]))

    threads = [threading.Thread(target=knock, args=each, daemon=True) for each in enumerate(kinds)]
    for thread in threads:
        thread.start()
    try:
        yield spoken
    finally:
        stop.set()
        for thread in threads:
            thread.join(WAIT)


def _connected(port: int, stop: threading.Event) -> socket.socket:
    until = time.monotonic() + WAIT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:  # host 0 does not listen yet
            if stop.wait(0.02) or time.monotonic() > until:
                raise


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> list:
    """Strangers may take as long as they like, and no thread ends with a traceback."""
    monkeypatch.setattr(handshake, "SECONDS_TO_SPEAK", 10_000.0, raising=False)
    tracebacks = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    yield tracebacks
    assert tracebacks == []


def meet_among(kinds: list[str], secret: bytes = b"", seed: int = 0) -> None:
    """Host 0 waits, the strangers come, then host 1 comes; both must meet."""
    port = handshake.free_port()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(handshake.receive, port, 2, "name0", WAIT, {"notice": 7}, secret)
        with knocking(port, kinds, seed) as spoken:
            until = time.monotonic() + WAIT
            # One that floods speaks until it is dropped, and one that drips until host 1 is there.
            while len(spoken) < len(kinds) - kinds.count("a byte at a time") - kinds.count("an endless line"):
                assert not first.done() and time.monotonic() < until, first
                time.sleep(0.01)
            second = threads.submit(handshake.connect, "127.0.0.1", port, 1, 2, "name1", WAIT, secret)
            channel, answer = second.result(timeout=WAIT)
            assert first.result(timeout=WAIT).names == channel.names == ["name0", "name1"] and answer["notice"] == 7


def test_an_impostor_without_the_secret_is_dropped():
    meet_among([IMPOSTOR] * 3, b"a secret of all hosts")


@pytest.mark.parametrize("secret", [b"", b"a secret of all hosts"])
def test_hosts_meet_among_many_strangers_in_little_memory(secret, count=300):
    """Each that has not spoken may cost 4 KiB and a socket, and of them there are 256 at most."""
    kinds = random.Random(count).choices([*KINDS, *[IMPOSTOR] * bool(secret)], k=count)
    assert set(kinds) >= set(KINDS)
    tracemalloc.start()
    try:
        meet_among(kinds, secret, seed=count)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture
def reception():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield handshake._Reception(server, b"")


def silent(reception, count: int) -> list[socket.socket]:
    made = []
    for _ in range(count):
        made.append(socket.create_connection(reception._server.getsockname()))
        reception.look(WAIT)
    return made


def is_dropped(stranger: socket.socket) -> bool:
    stranger.settimeout(0.05)
    try:
        return stranger.recv(1) == b""
    except TimeoutError:
        return False


def test_who_says_nothing_in_time_is_dropped(reception, monkeypatch):
    monkeypatch.setattr(handshake, "SECONDS_TO_SPEAK", 0.0)
    early = silent(reception, 1)
    monkeypatch.setattr(handshake, "SECONDS_TO_SPEAK", 10_000.0)
    late = silent(reception, 1)
    assert is_dropped(early[0]) and not is_dropped(late[0])


def test_one_stranger_too_many_drops_the_oldest(reception, monkeypatch):
    monkeypatch.setattr(handshake, "MOST_SPEAKING", 3)
    strangers = silent(reception, 4)
    assert [is_dropped(each) for each in strangers] == [True, False, False, False]


def test_one_open_file_too_many_drops_the_oldest(reception, monkeypatch):
    strangers = silent(reception, 2)
    too_many = Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(reception, "_server", SimpleNamespace(accept=too_many))
    reception._accept()
    assert [is_dropped(each) for each in strangers] == [True, False]
    reception._accept()
    reception._accept()  # nobody is left to drop
    assert is_dropped(strangers[1])
