"""Clients that hang up, stall or send garbage cost little, and harm nobody else."""

import json
import socket
import threading

import pytest

from tests.conftest import wait_until
from tpullm.serving import listening

LONG = {"model": "small", "prompt": "The cat", "max_tokens": 900, "logit_bias": {"319": -100, "318": -100, "317": -100}}


@pytest.fixture
def connected(served):
    """Opens a connection."""
    opened = []

    def connect(sends: bytes = b"") -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", served.port), timeout=60))
        opened[-1].sendall(sends)
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def turns(served):
    """Steps of the engine happen when a test says so."""
    served.engine.turns = threading.Semaphore(0)
    yield served.engine.turns
    turns, served.engine.turns = served.engine.turns, None
    turns.release(100)


def post(served, body: dict) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\n"
    return head.encode() + f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_to_a_client_that_hangs_up_is_cancelled(served, connected, turns, stream):
    before = set(served.engine.cancelled)
    connection = connected(post(served, LONG | {"stream": stream}))
    turns.release(2)
    wait_until(lambda: served.engine.figures()["running"] == 1)
    if stream:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    connection.close()
    turns.release(1)
    wait_until(lambda: len(served.engine.cancelled - before) == 1)
    wait_until(lambda: not served.service.writing)
    turns.release(10)
    assert served.engine.figures()["running"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_hang_up_at_once_leave_nothing(served, connected, stream):
    for _ in range(20):
        connected(post(served, LONG | {"stream": stream})).close()
    wait_until(lambda: not served.listening._server.server_state.tasks)
    assert not served.service.writing
    wait_until(lambda: not served.engine._running)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/one\r\n\r\n",
        b"\r\n\r\n\r\nhello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (listening.MOST_HEADER_BYTES + 1_000),
        b"GET /" + b"x" * (listening.MOST_HEADER_BYTES + 1_000),
    ],
    ids=lambda garbage: repr(garbage[:40]),
)
def test_garbage_is_refused_with_one_line(served, connected, garbage):
    before = len(served.said)
    told = everything(connected(garbage))
    assert told.startswith(b"HTTP/1.1 400 ")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert len(served.said) == before + 1
    assert served.ask("/health").status == 200


def test_garbage_within_a_body_ends_the_request(served, connected):
    head = post(served, LONG).partition(b"Content-Length")[0]
    told = everything(connected(head + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"))
    assert told.startswith(b"HTTP/1.1 400 ")


BEGINNINGS = [b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX", None]


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=["line", "headers", "body"])
def test_a_request_that_does_not_arrive(served, connected, monkeypatch, beginning):
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.05)
    told = everything(connected(beginning or post(served, LONG)[:-1]))
    assert told.startswith(b"HTTP/1.1 408 ") and b'"type": "invalid_request_error"' in told


def test_a_connection_may_ask_again_and_be_slow_the_second_time(served, connected, monkeypatch):
    request = post(served, LONG | {"max_tokens": 1})
    connection = connected(request)
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.05)
    connection.sendall(request[:20])
    assert b"HTTP/1.1 408 " in everything(connection)


def test_two_requests_at_once_are_answered_in_their_order(served, connected):
    first, second = (post(served, LONG | {"max_tokens": count}) for count in (2, 3))
    connection, told = connected(first + second), b""
    while told.count(b'"usage"') < 2:
        told += connection.recv(1 << 16)
    assert told.index(b'"completion_tokens":2') < told.index(b'"completion_tokens":3')


def test_a_client_that_does_not_read_is_cut_off(served, monkeypatch):
    """Its answers are far more than what the buffers of two sockets hold, so nothing else would end them."""
    monkeypatch.setattr(listening, "STALL_SECONDS", 0.05)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", served.port))
        connection.sendall(post(served, LONG | {"stream": True, "n": 60, "logprobs": 20, "max_tokens": 200}))
        wait_until(lambda: served.service.writing)
        wait_until(lambda: not served.service.writing)


def test_too_many_connections_are_refused(served, connected, monkeypatch):
    wait_until(lambda: not served.listening._server.server_state.connections)
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 2)
    kept = [connected(), connected()]
    told = everything(connected())
    assert told.startswith(b"HTTP/1.1 503 ") and b"server_error" in told
    for connection in kept:
        connection.close()
    wait_until(lambda: not served.listening._server.server_state.connections)
    assert served.ask("/health").status == 200
