"""`tpullm serve`: from the words to an answer, its end, and what it refuses before it loads anything."""

import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.serving.conftest import (
    chat_tokenizer,  # noqa: F401
    get,
    serve_until,
)
from tests.serving.stand_in import StandIn, session_of
from tpullm.cli import main, serve
from tpullm.engine import session as session_module
from tpullm.engine.guesses import Draft, Lookup
from tpullm.recipe.parsing import parse
from tpullm.serving import answered_questions
from tpullm.system.errors import UserError


@pytest.fixture
def check_memory():
    return Mock()


@pytest.fixture
def served(chat_tokenizer, check_memory, monkeypatch, capsys):  # noqa: F811
    """Serve the stand-in: what `ask` gets from it before Ctrl-C, the exit code, and what was said."""

    def opened(weights):
        session = session_of(chat_tokenizer)
        session.weights, session.memory_bytes = weights, lambda: 1 << 28
        return session

    module = ModuleType("tpullm.engine.engine")
    module.Engine = StandIn
    monkeypatch.setitem(sys.modules, "tpullm.engine.engine", module)
    config = SimpleNamespace(context_length=1024)
    find = lambda model, weights: SimpleNamespace(config=config, weights=weights, model=None)  # noqa: E731
    monkeypatch.setattr(session_module, "find_model", find)
    monkeypatch.setattr(session_module, "session_of", lambda found, exact: opened(found.weights))
    needed = ModuleType("tpullm.engine.needed_memory")
    needed.check_memory = check_memory
    monkeypatch.setitem(sys.modules, "tpullm.engine.needed_memory", needed)
    monkeypatch.setattr("tpullm.engine.needed_memory", needed, raising=False)
    monkeypatch.setattr(session_module, "with_adapter", lambda session, adapter: session_of(chat_tokenizer))

    def run(*words, ask, **options):
        return *serve_until(["runs/mine", *words], ask, **options), capsys.readouterr().err

    return run


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_it_is_stopped(served, stop):
    got, code, said = served(ask=lambda url: get(f"{url}/v1/models")["data"][0]["id"], stop=stop)
    assert got == ["mine"] and code == 130
    memory, first, ready, last = said.splitlines()
    assert memory == "serve: texts of up to 1,024 tokens; keys and values take 1.00 GiB"
    assert first.startswith("serve: mine at http://127.0.0.1:") and ready == "serve: ready"
    assert last.startswith("tpullm: serve: stopped")


def test_each_adapter_is_a_model_and_the_key_is_asked_for(served, check_memory, monkeypatch):
    monkeypatch.setenv(serve.KEY, "a-key-of-the-environment")

    def ask(url):
        with pytest.raises(OSError, match="401"):
            get(f"{url}/v1/models")
        return get(f"{url}/v1/models", Authorization="Bearer a-key-of-the-environment")

    ((models,), _, _) = served("--adapter", "runs/mine/talk", ask=ask)
    assert [model["id"] for model in models["data"]] == ["mine", "talk"]
    assert [model["base"] for model in models["data"]] == [None, "mine"]
    assert check_memory.call_args.args[1:] == (1024, 2, None)  # the longest text and the number of models


@pytest.mark.parametrize(
    ("words", "small", "names"),
    [
        ([], True, ["mine", "mine/pretrain"]),
        ([], False, ["mine"]),
        (["--base", "no"], True, ["mine"]),
        (["--base", "yes"], False, ["mine", "mine/pretrain"]),
    ],
)
def test_the_model_before_its_tuning_is_served_too_if_it_is_small(
    served, check_memory, monkeypatch, words, small, names
):
    config = SimpleNamespace(context_length=1024)

    def find(model, tuned=True, weights=""):
        model = SimpleNamespace(run=Path("runs/mine"), stage=stages[tuned], step=1)
        return SimpleNamespace(config=config, weights="", model=model)

    stages = {True: "talk", False: "pretrain"}
    monkeypatch.setattr(session_module, "find_model", find)
    monkeypatch.setattr(answered_questions, "answered_questions", lambda model: [f"{model.stage}?"])
    sys.modules["tpullm.engine.needed_memory"].is_small_beside = Mock(return_value=small)
    ((models,), _, said) = served(*words, ask=lambda url: get(f"{url}/v1/models"))
    assert [model["id"] for model in models["data"]] == names
    assert [model["base"] for model in models["data"]] == [*names[1:], None]
    assert [model["questions"] for model in models["data"]] == [["talk?"], []][: len(names)]
    assert all(model["identity"] and model["attention"] for model in models["data"])
    assert bool(check_memory.call_args.args[3]) is (len(names) > 1)
    assert ("is left out, since it takes much memory; --base yes" in said) is (not words and not small)
    stages[True] = "pretrain"  # is its own base
    ((models,), _, _) = served("--base", "yes", ask=lambda url: get(f"{url}/v1/models"))
    assert [model["id"] for model in models["data"]] == ["mine"]


def test_a_conversation_is_as_long_and_as_reproducible_and_in_as_many_bits_as_was_said(served, monkeypatch):
    body, made = {"model": "mine", "prompt": "雨" * 20}, []
    monkeypatch.setattr(StandIn, "compile", lambda self: made.append(self.reproducible))

    def ask(url):
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with pytest.raises(urllib.error.HTTPError, match="400") as error:
            urllib.request.urlopen(request, timeout=60)
        return json.load(error.value)["error"]["message"]

    ((told,), _, said) = served("--longest", "16", "--reproducible", "--weights", "int4", ask=ask)
    assert "16" in told and made == [True]
    assert "serve: matrices are in int4, and all parameters take 0.25 GiB; `tpullm compare runs/mine" in said
    told = refused("--longest", "1025", "--port", "0")
    assert told == "--longest: 1,025 tokens, and the model's context holds 1,024; lower it"


def test_who_guesses_ahead_is_what_was_said(chat_tokenizer, monkeypatch):  # noqa: F811
    load = Mock(return_value=(model := session_of(chat_tokenizer)))
    monkeypatch.setattr(session_module, "load_session", load)
    makers = [serve._draft_guesses(draft, model) for draft in ("", "none", "runs/small")]
    assert [type(make()) for make in makers] == [Lookup, type(None), Draft]
    load.assert_called_once_with("runs/small", exact=False)
    assert makers[0]() is not makers[0]()  # of each engine its own


def refused(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        serve.main(parse(main.parser_of("serve"), ["runs/none", *words]))
    return str(raised.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--key", "short"], "--key: has 5 characters, which can be guessed; use 8 or more"),
        (["--key", "クラウドの鍵です。。"], "--key: has characters that no HTTP header can hold"),
        (["--key", "two words here"], "--key: has characters"),
        (["--queue", "0"], "--queue: 0 is less than 1"),
        (["--draft", "runs/small", "--reproducible"], "--draft: a server that is --reproducible guesses nothing"),
        (["--longest", "-1"], "--longest: -1 is below 0"),
        (["--port", "65536"], "--port: 65536 is not from 0 to 65535"),
        (["--port", "0", "--host", "0.0.0.0"], "others on the network could ask this server; give a key in"),
        (["--port", "0", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 0: cannot assign requested address"),
        (["--port", "0", "--host", "no host"], "--host no host --port 0: no such address"),
    ],
)
def test_what_is_refused_before_a_model_is_looked_for(monkeypatch, words, told):
    monkeypatch.setattr(session_module, "find_model", None)
    assert told in refused(*words)


def test_a_port_in_use_is_told_and_a_model_that_is_none_leaves_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = "another program listens there; choose another --port or --host"
        assert refused("--port", str(port)) == f"--host 127.0.0.1 --port {port}: {told}"
    assert "no such file or folder" in refused("--port", str(port))
    socket.create_server(("127.0.0.1", port)).close()
