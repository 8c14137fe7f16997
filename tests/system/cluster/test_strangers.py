"""Whatever strangers send to the port of host 0, the hosts meet. The kinds are in `strangers.py`."""

import errno
import random
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from tests.system.cluster.strangers import IMPOSTOR, KINDS, knocking
from tpullm.system.cluster import handshake

SECRET = b"a secret of all hosts"
WAIT = 60.0  # seconds; far more than any machine takes


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> list:
    """Strangers may take as long as they like, and no thread ends with a traceback."""
    monkeypatch.setattr(handshake, "SECONDS_TO_SPEAK", 10_000.0, raising=False)
    tracebacks = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    yield tracebacks
    assert tracebacks == []


def meet_among(kinds: list[str], *own_secret: bytes, seed: int = 0) -> None:
    """Host 0 waits, the strangers come, then host 1 comes; both must meet."""
    port = handshake.free_port()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(handshake.receive, port, 2, "name0", WAIT, {"notice": 7}, *own_secret)
        with knocking(port, kinds, seed) as spoken:
            until = time.monotonic() + WAIT
            # One that floods speaks until it is dropped, and one that drips until host 1 is there.
            while len(spoken) < len(kinds) - kinds.count("a byte at a time") - kinds.count("an endless line"):
                assert not first.done() and time.monotonic() < until, first
                time.sleep(0.01)
            second = threads.submit(handshake.connect, "127.0.0.1", port, 1, 2, "name1", WAIT, *own_secret)
            channel, answer = second.result(timeout=WAIT)
            assert first.result(timeout=WAIT).names == channel.names == ["name0", "name1"] and answer["notice"] == 7


@pytest.mark.parametrize("kinds", [KINDS[::3], KINDS[1::3], KINDS[2::3]], ids=str)
def test_no_stranger_ends_a_launch_or_holds_it_up(kinds):
    meet_among(kinds * 2)


def test_an_impostor_without_the_secret_is_dropped():
    meet_among([IMPOSTOR] * 3, SECRET)


@pytest.mark.parametrize("own_secret", [(), (SECRET,)], ids=["without a secret", "with one"])
def test_hosts_meet_among_many_strangers_in_little_memory(own_secret, count=300):
    """Each that has not spoken may cost 4 KiB and a socket, and of them there are 256 at most."""
    kinds = random.Random(count).choices([*KINDS, *[IMPOSTOR] * bool(own_secret)], k=count)
    tracemalloc.start()
    try:
        meet_among(kinds, *own_secret, seed=count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


@pytest.fixture
def reception():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield handshake._Reception(server, b"")


def silent(reception, count: int) -> list[socket.socket]:
    """Strangers that are connected and say nothing."""
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
    monkeypatch.setattr(reception, "_server", SimpleNamespace(accept=too_many_files))
    reception._accept()
    assert [is_dropped(each) for each in strangers] == [True, False]
    reception._accept()
    reception._accept()  # nobody is left to drop
    assert is_dropped(strangers[1])


def too_many_files():
    raise OSError(errno.EMFILE, "Too many open files")
