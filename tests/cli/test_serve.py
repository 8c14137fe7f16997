"""`tpullm serve`: from the words to an answer, its end, and what it refuses before it loads anything."""

import importlib.util
import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from types import ModuleType, SimpleNamespace

import pytest

from tests.serving.command import get, serve_until
from tests.serving.conftest import chat_tokenizer  # noqa: F401
from tests.serving.stand_in import StandIn, session_of
from tpullm.cli import main, serve
from tpullm.engine import session as session_module
from tpullm.engine.guesses import Draft, Lookup
from tpullm.recipe.parsing import parse
from tpullm.system.errors import UserError


@pytest.fixture
def asked():
    """The longest text and the number of models for which the memory was asked about."""
    return []


@pytest.fixture
def served(chat_tokenizer, asked, monkeypatch, capsys):  # noqa: F811
    """Serve the stand-in: what `ask` gets from it before Ctrl-C, the exit code, and what was said."""

    def opened(weights):
        session = session_of(chat_tokenizer)
        session.weights, session.memory_bytes = weights, lambda: 1 << 28
        return session

    module = ModuleType("tpullm.engine.engine")
    module.Engine = StandIn
    monkeypatch.setitem(sys.modules, "tpullm.engine.engine", module)
    found = SimpleNamespace(config=SimpleNamespace(context_length=1024))
    monkeypatch.setattr(
        session_module, "find_model", lambda model, weights: setattr(found, "weights", weights) or found
    )
    monkeypatch.setattr(session_module, "session_of", lambda found, exact: opened(found.weights))
    needed = ModuleType("tpullm.engine.needed_memory")
    needed.check_memory = lambda found, longest, models: asked.append((longest, models))
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


def test_each_adapter_is_a_model_and_the_key_is_asked_for(served, asked, monkeypatch):
    monkeypatch.setenv(serve.KEY, "a-key-of-the-environment")

    def ask(url):
        with pytest.raises(OSError, match="401"):
            get(f"{url}/v1/models")
        return get(f"{url}/v1/models", Authorization="Bearer a-key-of-the-environment")

    ((models,), _, _) = served("--adapter", "runs/mine/talk", ask=ask)
    assert [model["id"] for model in models["data"]] == ["mine", "talk"] and asked == [(1024, 2)]


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
    with pytest.raises(UserError, match="--longest: 1,025 tokens, and the model's context holds 1,024; lower it"):
        serve.main(_parsed(["--longest", "1025", "--port", "0"]))


def test_who_guesses_ahead_is_what_was_said(chat_tokenizer, monkeypatch):  # noqa: F811
    model, loaded = session_of(chat_tokenizer), []
    monkeypatch.setattr(session_module, "load_session", lambda name, exact: loaded.append((name, exact)) or model)
    makers = [serve._draft_guesses(draft, model) for draft in ("", "none", "runs/small")]
    assert [type(make()) for make in makers] == [Lookup, type(None), Draft] and loaded == [("runs/small", False)]
    assert makers[0]() is not makers[0]()  # of each engine its own


def refused(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        serve.main(_parsed(words))
    return str(raised.value)


def _parsed(words):
    return parse(main.parser_of("serve"), ["runs/none", *words])


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


def test_a_port_in_use(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refused("--port", port) == (
            f"--host 127.0.0.1 --port {port}: another program listens there; choose another --port or --host"
        )


@pytest.mark.parametrize("package", serve.PACKAGES)
def test_without_the_extra_a_line_says_what_to_install(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert refused() == f"serve: needs the package {package}: pip install 'tpullm[serve]'"


def test_a_model_that_is_none_leaves_the_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="no such folder"):
        serve.main(_parsed(["--port", str(port)]))
    socket.create_server(("127.0.0.1", port)).close()
