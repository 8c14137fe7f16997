"""Engines of several hosts are asked the same in the same turns; with the engine itself, in two processes."""

import json
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest

from tests.conftest import wait_until
from tests.formats.huggingface.published import change, directory
from tests.serving.stand_in import StandIn, session_of
from tests.system.cluster.channels import connect, end_threads
from tests.training.several_hosts import finish, start
from tpullm.engine.request import Request
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import OnAllHosts
from tpullm.system.cluster.channel import MOST_BYTES
from tpullm.system.cluster.handshake import free_port
from tpullm.system.errors import HostFailed

CHANGES = {
    "bias": {5: 3.5, 7: -100.0},
    "presence_penalty": 0.5,
    "frequency_penalty": -1.25,
    "top": 3,
    "echo": 2,
    "seed": 9,
    "stop_ids": (319,),
    "client": "a",
}


@pytest.fixture
def hosts(chat_tokenizer):
    """The engines of two hosts, and what `OnAllHosts` makes of them; host 1 takes turns in a thread."""
    session = session_of(chat_tokenizer)
    engines, channels = [StandIn(session) for _ in range(2)], connect(2)
    made = [
        OnAllHosts(engine, ServedModel("small", session, 1024), channel)
        for engine, channel in zip(engines, channels, strict=True)
    ]
    for channel in channels:
        channel.start()
    failed = []

    def follow():
        try:
            while made[1].step():
                pass
        except HostFailed as error:
            failed.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    yield engines, made
    channels[0].fail("the end", 130)
    thread.join(20)
    assert str(failed[0]) == "host 0 (name0): the end"
    end_threads()


def test_all_hosts_write_the_same_and_one_hears_it(hosts, chat_tokenizer):
    engines, (first, _) = hosts
    heard, asked = [], [[] for _ in engines]
    for engine, requests in zip(engines, asked, strict=True):
        submit = engine.submit
        engine.submit = lambda request, heard, submit=submit, requests=requests: (
            requests.append(request) or submit(request, heard)
        )
    mask = ServedModel("small", first._engine.session, 1024).grammars.of_schema({"enum": ["猫", 17]}, "p")
    sampling = Sampling(1.3, 40, 0.9, 0.01)
    numbers = [
        first.submit(Request((40, 41, 42), 30, sampling, **CHANGES), heard.append),
        first.submit(Request((43,), 30, GREEDY, allowed=mask, stop_ids=(319,)), heard.append),
        first.submit(Request((44,), 900, GREEDY), lambda token: None),
    ]
    assert numbers == [1, 2, 3] and first.figures()["waiting"] == 3
    first.step()
    first.cancel(3)
    while first.step():
        pass
    one, other = engines  # which may be turns behind
    wait_until(lambda: (other._written, other.cancelled) == (one._written, one.cancelled) and not other._running)
    assert [engine._written for engine in engines] == [engines[0]._written] * 2
    assert [engine.cancelled for engine in engines] == [{3}, {3}]
    one, other = asked
    assert other[0] == one[0] and other[2] == one[2] and other[1].allowed.grammar == mask.grammar
    np.testing.assert_array_equal(other[1].allowed(()), mask(()))
    assert sum(bool(token.ends) for token in heard) == 2


def test_a_prompt_longer_than_a_message_arrives(hosts, monkeypatch):
    engines, (first, _) = hosts
    for engine in engines:
        engine.longest = MOST_BYTES
    long = Request(tuple(range(1_000_000, 1_000_000 + MOST_BYTES // 4)), 1, GREEDY)
    given = []
    monkeypatch.setattr(engines[1], "submit", lambda request, heard: given.append(request))
    monkeypatch.setattr(engines[0], "submit", lambda request, heard: None)
    first.submit(long, print)
    first.step()
    wait_until(lambda: given)
    assert given == [long]


ASK = {"model": "model", "prompt": "The cat sat on", "max_tokens": 24, "temperature": 0}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["sun", "雨"]}}}
CHAT = {"model": "model", "messages": [{"role": "user", "content": "猫"}], "max_tokens": 60, "seed": 3}


def post(port: int, path: str, body: dict) -> str:
    """The answer; `OSError` if it is refused, or nobody listens yet."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def answers(port: int) -> list:
    """What the server says to several requests, one of them given up after its first event."""
    head = {"Content-Type": "application/json"}
    url, body = f"http://127.0.0.1:{port}/v1/completions", ASK | {"stream": True, "max_tokens": 400}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head), timeout=120) as response:
        response.readline()
    texts = [
        json.loads(post(port, "completions", ASK | {"n": 3, "temperature": 1, "seed": 5, "echo": True, "logprobs": 2}))
    ]
    texts += [json.loads(post(port, "chat/completions", CHAT | {"response_format": SCHEMA}))]
    streamed = post(port, "completions", ASK | {"stream": True, "frequency_penalty": 1.5})
    chosen = [[choice.get("text") or choice["message"]["content"] for choice in one["choices"]] for one in texts]
    events = [json.loads(event.removeprefix("data: ")) for event in streamed.split("\n\n") if "{" in event]
    return [*chosen, "".join(event["choices"][0]["text"] for event in events)]


@pytest.mark.slow
def test_two_hosts_answer_as_one_and_end_together(tmp_path):
    folder = directory(tmp_path / "model", layers=1)
    change(folder / "config.json", max_position_embeddings=512)
    found = []
    for count in (2, 1):
        port = free_port()
        started = start(count, "tpullm", "serve", folder, "--port", port, devices=4)
        try:
            while not _is_ready(port):
                assert started[0].poll() is None
                time.sleep(0.1)
            found.append(answers(port))
        finally:
            started[0].send_signal(signal.SIGINT)
            ended = finish(started)
        assert [code for code, _, _ in ended] == [130] * count, ended
        assert all("serve: stopped" in said.splitlines()[-1] for _, _, said in ended), ended
    assert found[0] == found[1]


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60):
            return True
    except OSError:
        return False
