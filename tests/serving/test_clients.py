"""OpenAI's own client gets what it gets from OpenAI. Clients that hang up, stall or send garbage harm nobody else."""

import contextlib
import json
import socket
import threading
import time

import openai
import pytest
from serving_conformance import CASES

from tests.conftest import wait_until
from tpullm.serving import listening
from tpullm.serving.completions import ChatReply
from tpullm.serving.token_masks import FORMS

LONG = {"model": "small", "prompt": "The cat", "max_tokens": 900, "logit_bias": {"319": -100, "318": -100, "317": -100}}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=served.key, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("case", CASES)
def test_openais_client(client, case):
    CASES[case](client, "small")


@pytest.fixture
def connected(served):
    with contextlib.ExitStack() as opened:

        def connect(sends: bytes = b"") -> socket.socket:
            made = opened.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60))
            made.sendall(sends)
            return made

        yield connect


@pytest.fixture
def turns(served):
    """Steps of the engine happen when a test says so."""
    served.engine.turns = threading.Semaphore(0)
    yield served.engine.turns
    turns, served.engine.turns = served.engine.turns, None
    turns.release(100)


def post(served, body: dict, path: str = "/v1/completions") -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\n"
    return head.encode() + f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


def everything(connection: socket.socket) -> bytes:
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


def test_the_form_of_a_client_that_hangs_up_is_not_compiled(served, connected, monkeypatch):
    """Forms of one client are compiled one after the other, so it may be gone before its turn."""
    made, goes_on = [], threading.Event()

    def make_masks(reply, kept):
        return not kept and (made.append(reply.asked.seed) or goes_on.wait(60))

    monkeypatch.setattr(ChatReply, "make_masks", make_masks)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1]}}}
    chat = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "response_format": form, "max_tokens": 1}
    first, second, third = (post(served, chat | {"seed": n}, "/v1/chat/completions") for n in (1, 2, 3))
    waiting = connected(first)
    wait_until(lambda: made == [1])
    gone = connected(second)
    wait_until(lambda: served.service._reading == 2)
    gone.close()
    wait_until(lambda: served.service._reading == 1)
    other = connected(third)
    goes_on.set()
    assert waiting.recv(12) == other.recv(12) == b"HTTP/1.1 200" and made == [1, 3]


def test_a_form_that_is_compiled_waits_for_no_other(served):
    """Four clients with large forms keep all the threads busy that compile."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["known"]}}}
    chat = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "response_format": form, "max_tokens": 1}
    assert served.ask("/v1/chat/completions", chat).status == 200
    goes_on = threading.Event()
    busy = [served.service._former.submit(goes_on.wait, 20) for _ in range(FORMS)]
    assert served.ask("/v1/chat/completions", chat).status == 200
    assert not any(one.done() for one in busy)
    goes_on.set()


def test_clients_that_hang_up_at_once_leave_nothing(served, connected):
    for number in range(40):
        connected(post(served, LONG | {"stream": bool(number % 2)})).close()
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
    head = post(served, LONG).partition(b"Content-Length")[0]
    told = everything(connected(head + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"))
    assert told.startswith(b"HTTP/1.1 400 "), "garbage within a body"


def test_a_request_that_does_not_arrive(served, connected, monkeypatch):
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.05)
    for beginning in (b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX", post(served, LONG)[:-1]):
        told = everything(connected(beginning))
        assert told.startswith(b"HTTP/1.1 408 ") and b'"type": "invalid_request_error"' in told


@pytest.mark.parametrize("head", [b"GET\r\n\r\n", b""], ids=["garbage", "a body"])
def test_a_client_that_still_sends_when_it_is_refused_reads_why(served, connected, head):
    """It sends 16 MB, which no buffer holds, before it reads."""
    size = 16 << 20
    last = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % size
    head = head or post(served, LONG).partition(b"Content-Length")[0] + last
    connection = connected(head)
    for _ in range(size >> 16):
        connection.sendall(bytes(1 << 16))
    told = everything(connection)
    assert told.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")) and b"invalid_request_error" in told


def test_a_client_that_is_refused_and_sends_for_ever_is_cut_off(served, connected, monkeypatch):
    monkeypatch.setattr(listening, "LINGER_SECONDS", 0.2)
    connection, sent = connected(b"GET\r\n\r\n"), time.monotonic()
    with pytest.raises(OSError, match="reset|pipe"):
        while time.monotonic() < sent + 20:
            connection.sendall(bytes(1 << 10))
            time.sleep(0.01)
    assert time.monotonic() - sent >= 0.2


def test_what_a_late_client_asked_for_is_ended_when_it_is_refused(served, connected, monkeypatch):
    """Nothing of it waits for the time that the client has to read why."""
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(listening, "LINGER_SECONDS", 600)
    now, before = served.listening._server.server_state, set(served.listening._server.server_state.connections)
    connection = connected(post(served, LONG)[:-1])
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: not now.tasks)
    (lingers,) = now.connections - before
    connection.close()
    wait_until(lambda: lingers not in now.connections)


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


def test_of_too_many_connections_the_oldest_that_sends_no_whole_request_makes_room(
    served, client, connected, monkeypatch
):
    """Connections that are being answered stay; and one that asks at once is answered, however many are half open."""
    client.close()  # else it keeps a connection for `KEEP_SECONDS`
    open_ones = served.listening._server.server_state
    wait_until(lambda: not open_ones.connections)
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 3)
    served.engine.turns = threading.Semaphore(0)
    answered = connected(post(served, LONG | {"max_tokens": 2}))
    wait_until(lambda: served.service.writing)
    begun = []
    for number, beginning in enumerate((b"", b"POST /v1/comp")):
        begun.append(connected(beginning))
        wait_until(lambda expected=number + 2: len(open_ones.connections) == expected)
    assert served.ask("/health").status == 200
    told = everything(begun[0])
    assert told.startswith(b"HTTP/1.1 503 ") and b"3 connections are open; try again later" in told
    wait_until(lambda: len(open_ones.connections) == 2)
    served.engine.turns.release(1_000)
    assert answered.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    served.engine.turns = None


def test_of_too_many_connections_one_that_was_refused_ends_first(served, client, connected, monkeypatch):
    client.close()
    open_ones = served.listening._server.server_state
    wait_until(lambda: not open_ones.connections)
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(listening, "LINGER_SECONDS", 600)
    half = connected(b"POST /v1/comp")
    wait_until(lambda: len(open_ones.connections) == 1)
    refused = connected(b"GET\r\n\r\n")
    assert everything(refused).startswith(b"HTTP/1.1 400 ")
    assert len(open_ones.connections) == 2
    assert served.ask("/health").status == 200
    wait_until(lambda: len(open_ones.connections) == 1)
    half.sendall(b"letions HTTP/1.1\r\n\r\n")
    assert everything(half).startswith(b"HTTP/1.1 400 "), "the older one, which was not refused yet"
