"""What the server does as a whole: keys, names, the queue, its figures, and its end."""

import json
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.conftest import wait_until
from tests.serving.conftest import Served
from tpullm.serving import application, listening, served_model
from tpullm.serving.refusal import Refusal
from tpullm.serving.stepping import Stepping
from tpullm.system.errors import UserError

TEXT = {"model": "small", "prompt": "The cat", "max_tokens": 4, "temperature": 0}
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ALL_PATHS = (("/", None), ("/v1/completions", TEXT))


@pytest.fixture
def server(chat_tokenizer, monkeypatch):
    """Makes servers of a test's own, which do not step unless told."""
    made = []

    def make(**options) -> Served:
        made.append(Served({"small": chat_tokenizer, "other": chat_tokenizer}, **options))
        for module in (application, listening):
            monkeypatch.setattr(module, "say", made[-1].said.append)
        return made[-1]

    yield make
    for one in made:
        one.listening.stop(one.service.stop)


def test_until_the_programs_are_compiled_only_questions_about_the_server_are_answered(server):
    """Then each model has its engine. `/health` needs no key."""
    one = server()
    assert one.ask("/health").status == 503 and one.ask("/v1/models").status == 200
    refused = one.ask("/v1/completions", TEXT)
    assert refused.status == 503 and refused.headers["retry-after"]
    one.step()
    wait_until(lambda: one.ask("/health", headers={"authorization": None}).status == 200)
    assert all(engine.compiled for engine in one.engines.values())
    models = json.loads(one.ask("/v1/models").text)["data"]
    assert [model["id"] for model in models] == ["small", "other"]
    assert models[0]["talks"] is True and "<|im_end|>" in models[0]["ends"]
    assert one.ask("/v1/completions", TEXT | {"model": "other"}).status == 200
    assert (one.engines["small"]._written, one.engines["other"]._written) == (0, 4)


def test_without_a_key_other_names_of_this_machine_are_refused(server):
    one = server(key="", hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
    one.step()
    wrong = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:1", "", "[::1].evil.example"]
    wrong += ["[::1]x:1", "::1", "[::1", "localhost:80:80"]
    names = [*wrong, "localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000"]
    found = [one.ask(path, body, headers={"host": name}).status for name in names for path, body in ALL_PATHS]
    assert found == [403] * len(wrong) * len(ALL_PATHS) + [200] * 4 * len(ALL_PATHS)


def test_more_than_the_queue_is_told_to_try_later(server):
    one = server(queue=2)
    one.engine.turns = threading.Semaphore(0)
    one.step()
    one.engine._rows = 1
    threads = [threading.Thread(target=one.ask, args=("/v1/completions", TEXT)) for _ in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda expected=number + 1: len(one.engine._running) == expected)
    refused = one.ask("/v1/completions", TEXT)
    assert refused.status == 429 and refused.headers["retry-after"]
    assert json.loads(refused.text)["error"]["type"] == "rate_limit_error"
    one.engine.turns.release(1_000)
    for thread in threads:
        thread.join()
    assert one.ask("/v1/completions", TEXT).status == 200
    assert one.ask("/v1/completions", TEXT | {"n": 3}).status == 400, "three can never wait"


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_server_stops_a_stream_ends_with_an_error_and_a_whole_answer_is_refused(server, stream):
    one = server()
    one.step()
    one.engine.turns, answers = threading.Semaphore(2), []
    body = TEXT | {"max_tokens": 900, "stream": stream}
    thread = threading.Thread(target=lambda: answers.append(one.ask("/v1/completions", body)))
    thread.start()
    wait_until(lambda: one.engine._written == 2)
    one.listening.stop(one.service.stop)
    thread.join()
    *_, last = answers[0].text.decode().strip().split("\n\n")
    assert answers[0].status == (200 if stream else 503)
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert one.said == [f"127.0.0.1 POST /v1/completions: 503 {application.STOPPING}"]
    with pytest.raises(OSError):
        one.ask("/health")


def test_an_engine_that_fails_ends_the_loop():
    engine = SimpleNamespace(step=Mock(side_effect=RuntimeError("the device is gone")))
    with pytest.raises(RuntimeError, match="the device is gone"):
        Stepping({"a": engine}).run()


def test_what_an_engine_refuses_is_a_refusal_and_a_fault_of_ours_is_told_and_logged(served, monkeypatch):
    monkeypatch.setattr(served.engine, "longest", 1)
    answer = served.ask("/v1/completions", TEXT)
    assert answer.status == 400 and b"does not fit" in answer.text
    monkeypatch.setattr(served.service, "begin", None)
    before = len(served.said)
    answer = served.ask("/v1/completions", TEXT)
    assert answer.status == 500 and json.loads(answer.text)["error"]["type"] == "server_error"
    assert "Traceback" in served.said[before] and " 500 " in served.said[before + 1]


def test_the_figures_count_requests_and_tokens(server):
    one = server()
    one.step()
    for path, body in (("/v1/completions", TEXT), ("/v1/completions", {}), ("/none", None)):
        one.ask(path, body)
    assert set(one.ask("/metrics").text.decode().splitlines()) >= {
        'tpullm_requests_total{path="/v1/completions",status="200"} 1.0',
        'tpullm_requests_total{path="/v1/completions",status="400"} 1.0',
        'tpullm_requests_total{path="elsewhere",status="404"} 1.0',
        'tpullm_new_tokens_total{model="small"} 4.0',
        'tpullm_running{model="other"} 0.0',
        "tpullm_request_seconds_count 1.0",
    }


def test_a_model_has_the_name_of_its_folder():
    for paths in ({"runs/q/": "q", "runs/q/talk": "talk", "gs://b/run": "run", ".": "."}, {"a/q": "a/q", "b/q": "b/q"}):
        assert served_model.served_names([*paths]) == [*paths.values()]


def test_chat_with_a_model_that_does_not_talk(served, monkeypatch):
    model = served.service.models["small"]
    monkeypatch.setattr(model, "talks", False)
    assert served.ask("/v1/chat/completions", CHAT).status == 200, "it has a template"
    monkeypatch.setattr(model.tokenizer, "has_template", False)
    refused = served.ask("/v1/chat/completions", CHAT)
    assert refused.status == 400 and b"use /v1/completions" in refused.text


def test_a_tokenizer_of_ours_refuses_tools_with_a_line_too(served, monkeypatch):
    """It has no folder that a message could name."""
    tokenizer = SimpleNamespace(chat_template=Mock(side_effect=UserError("no tools")), encode=list)
    monkeypatch.setattr(served.service.models["small"], "tokenizer", tokenizer)
    with pytest.raises(Refusal, match="^no tools$"):
        served.service.models["small"].chat_ids(CHAT["messages"], None)
