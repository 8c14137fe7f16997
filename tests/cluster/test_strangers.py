"""Whatever strangers send to the port of host 0, the hosts meet. The kinds are in `strangers.py`."""

import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.strangers import IMPOSTOR, KINDS, knocking
from tpullm.cluster import handshake

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


@pytest.mark.parametrize("kind", KINDS)
def test_no_stranger_ends_a_launch_or_holds_it_up(kind):
    meet_among([kind] * 3)


def test_an_impostor_without_the_secret_is_dropped():
    meet_among([IMPOSTOR] * 3, SECRET)


@pytest.mark.parametrize("count", [50, 500])
@pytest.mark.parametrize("own_secret", [(), (SECRET,)], ids=["without a secret", "with one"])
def test_hosts_meet_among_many_strangers_in_little_memory(count, own_secret):
    """Each that has not spoken may cost 4 KiB and a socket, and of them there are 256 at most."""
    kinds = random.Random(count).choices([*KINDS, *[IMPOSTOR] * bool(own_secret)], k=count)
    tracemalloc.start()
    try:
        meet_among(kinds, *own_secret, seed=count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
