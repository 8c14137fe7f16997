"""Engines of several hosts are asked the same in the same turns; with the engine itself, in two processes."""

import json
import signal
import threading
import urllib.request

import numpy as np
import pytest

from tests.conftest import wait_until
from tests.formats.huggingface.published import change, directory
from tests.serving.command import is_ready
from tests.serving.stand_in import StandIn, session_of
from tests.system.cluster.channels import connect, end_threads
from tests.training.several_hosts import finish, start
from tpullm.engine.request import Request
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import OnAllHosts
from tpullm.system.cluster.handshake import free_port
from tpullm.system.errors import HostFailed

CHANGES = {"presence_penalty": 0.5, "frequency_penalty": -1.25, "top": 3, "echo": 2, "seed": 9, "client": "a"}
CHANGES |= {"bias": {5: 3.5, 7: -100.0}, "stop_ids": (319,)}


@pytest.fixture
def hosts(chat_tokenizer):
    """The engines of two hosts, and what `OnAllHosts` makes of them; host 1 takes turns in a thread."""
    session = session_of(chat_tokenizer)
    engines, channels = [StandIn(session) for _ in range(2)], connect(2)
    model = ServedModel("small", session, 1024)
    made = [OnAllHosts(engine, model, channel) for engine, channel in zip(engines, channels, strict=True)]
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
    assert one.cancelled == {3}
    one, other = asked
    assert other[0] == one[0] and other[2] == one[2] and other[1].allowed.grammar == mask.grammar
    np.testing.assert_array_equal(other[1].allowed(()), mask(()))
    assert sum(bool(token.ends) for token in heard) == 2


ASK = {"model": "model", "prompt": "The cat sat on", "max_tokens": 24, "temperature": 0}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["sun", "雨"]}}}
CHAT = {"model": "model", "messages": [{"role": "user", "content": "猫"}], "max_tokens": 60, "seed": 3}


def post(port: int, path: str, body: dict):
    """The response; `OSError` if it is refused, or nobody listens yet."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", json.dumps(body).encode(), head)
    return urllib.request.urlopen(request, timeout=120)


def answers(port: int) -> list:
    """What the server says to several requests, one of them given up after its first event."""
    with post(port, "completions", ASK | {"stream": True, "max_tokens": 400}) as response:
        response.readline()
    found = []
    for path, body in (
        ("completions", ASK | {"n": 3, "temperature": 1, "seed": 5, "echo": True, "logprobs": 2}),
        ("chat/completions", CHAT | {"response_format": SCHEMA}),
        ("completions", ASK | {"stream": True, "frequency_penalty": 1.5}),
    ):
        with post(port, path, body) as response:
            events = [line.removeprefix("data: ") for line in response.read().decode().splitlines() if "{" in line]
        found.append([json.loads(event)["choices"] for event in events])
    return [[(one.get("text"), one.get("message")) for event in events for one in event] for events in found]


@pytest.mark.slow
def test_two_hosts_answer_as_one_and_end_together(tmp_path):
    folder = directory(tmp_path / "model", layers=1)
    change(folder / "config.json", max_position_embeddings=512)
    found = []
    for count in (2, 1):
        port = free_port()
        started = start(count, "tpullm", "serve", folder, "--port", port, devices=4)
        try:
            wait_until(
                lambda port=port, first=started[0]: first.poll() is not None or is_ready(f"http://127.0.0.1:{port}")
            )
            found.append(answers(port))
        finally:
            started[0].send_signal(signal.SIGINT)
            ended = finish(started)
        assert [code for code, _, _ in ended] == [130] * count, ended
        assert all("serve: stopped" in said.splitlines()[-1] for _, _, said in ended), ended
    assert found[0] == found[1]
