"""Engines of several hosts are asked the same in the same turns; with the engine itself, in two processes."""

import signal
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import openai
import pytest

from tests.conftest import wait_until
from tests.formats.huggingface.published import change, directory
from tests.serving.conftest import is_ready
from tests.serving.stand_in import StandIn, session_of
from tests.system.cluster.conftest import connect, end_threads
from tests.training.several_hosts import finish, start
from tpullm.engine.request import Request
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import OnAllHosts
from tpullm.serving.token_masks import schema_grammar
from tpullm.system.cluster.handshake import free_port

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

    def follow():
        while made[1].step():
            pass

    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(follow)
        yield engines, made
        channels[0].fail("the end", 130)
    assert str(following.exception()) == "host 0 (name0): the end"
    end_threads()


def test_all_hosts_write_the_same_and_one_hears_it(hosts, chat_tokenizer):
    engines, (first, _) = hosts
    heard, (one, other) = [], engines
    for engine in engines:
        engine.submit = Mock(wraps=engine.submit)
    grammars = ServedModel("small", first._engine.session, 1024).grammars
    mask = grammars.mask(schema_grammar({"enum": ["猫", 17]}, "p"), "p")
    sampling = Sampling(1.3, 40, 0.9, 0.01)
    numbers = [
        first.submit(Request((40, 41, 42), 30, sampling, **CHANGES), heard.append),
        first.submit(Request((43,), 30, GREEDY, allowed=mask, stop_ids=(319,)), heard.append),
        first.submit(Request((44,), 900, GREEDY), lambda token: None),
    ]
    assert numbers == [1, 2, 3] and first.figures()["waiting"] == 3
    first.step()
    first.cancel(3)
    late = [{1}, {2}, {1, 2}] * 3
    other.late = Mock(return_value=set())
    one.late = lambda: late.pop() if late else set()
    while first.step():
        pass
    reached = lambda: (other._written, other.cancelled) == (one._written, one.cancelled)  # noqa: E731
    wait_until(lambda: reached() and not other._running)  # it may be turns behind
    assert one.cancelled == {3} and other.late.called  # so that its masks are begun too
    one, other = ([call.args[0] for call in engine.submit.call_args_list] for engine in engines)
    assert other[0] == one[0] and other[2] == one[2] and other[1].allowed.grammar == mask.grammar
    np.testing.assert_array_equal(other[1].allowed(()), mask(()))
    assert sum(bool(token.ends) for token in heard) == 2


ASK = {"model": "model", "prompt": "The cat sat on", "max_tokens": 24, "temperature": 0}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["sun", "雨"]}}}
CHAT = {"model": "model", "messages": [{"role": "user", "content": "猫"}], "max_tokens": 60, "seed": 3}


def answers(url: str) -> list:
    """What the server says to several requests, one of them given up after its first event."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        with client.completions.create(**ASK | {"stream": True, "max_tokens": 400}) as stream:
            next(iter(stream))
        asked = ASK | {"n": 3, "temperature": 1, "seed": 5, "echo": True, "logprobs": 2}
        found = [one.text for one in client.completions.create(**asked).choices]
        found += [one.message for one in client.chat.completions.create(**CHAT, response_format=SCHEMA).choices]
        events = client.completions.create(**ASK, stream=True, frequency_penalty=1.5)
        return [*found, *(one.text for event in events for one in event.choices)]


@pytest.mark.slow
def test_two_hosts_answer_as_one_and_end_together(tmp_path):
    folder = directory(tmp_path / "model", layers=1)
    change(folder / "config.json", max_position_embeddings=512)
    found = []
    for count in (2, 1):
        url = f"http://127.0.0.1:{(port := free_port())}"
        started = start(count, "tpullm", "serve", folder, "--port", port, devices=4)
        try:
            wait_until(lambda url=url, it=started[0]: it.poll() is not None or is_ready(url), 300)  # programs compile
            found.append(answers(url))
        finally:
            started[0].send_signal(signal.SIGINT)
            ended = finish(started)
        assert [code for code, _, _ in ended] == [130] * count, ended
        assert all("serve: stopped" in said.splitlines()[-1] for _, _, said in ended), ended
    assert found[0] == found[1]
