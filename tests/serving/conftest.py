"""A server in this process, over the stand-in for an engine; and `tpullm serve` in this process."""

import contextlib
import http.client
import json
import os
import signal
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import wait_until
from tests.formats.huggingface import published
from tests.serving.stand_in import StandIn, session_of
from tpullm.cli import main
from tpullm.serving import application, listening
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import Stepping
from tpullm.system.cluster.handshake import free_port
from tpullm.tokenizer.published import PublishedTokenizer

KEY = "a-key-of-the-tests"
# ChatML with tools as Qwen 2.5 shows them, shortened.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Served:
    """A running server; `engine` stands in for its first one, `said` are the lines of its log."""

    def __init__(
        self, tokenizers: dict, key: str = KEY, queue: int = 64, hosts: frozenset = frozenset(), longest: int = 1024
    ):
        sessions = {name: session_of(tokenizer, longest) for name, tokenizer in tokenizers.items()}
        self.engines = {name: StandIn(session) for name, session in sessions.items()}
        self.engine = next(iter(self.engines.values()))
        self.stepping = Stepping(self.engines)
        models = {name: ServedModel(name, session, session.context_length) for name, session in sessions.items()}
        self.service = application.Service(models, self.stepping, queue, key, hosts)
        self.listener = listening.bound_socket("127.0.0.1", 0)
        self.port, self.key = self.listener.getsockname()[1], key
        self.listening = listening.Listening(application.application(self.service), self.listener)
        self.said: list[str] = []
        self.listening.start()

    def step(self) -> None:
        self.stepping.compile()
        threading.Thread(target=self.stepping.run, daemon=True).start()

    def ask(self, path: str, body=None, method: str = "", headers: dict | None = None) -> SimpleNamespace:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = json.dumps(body).encode() if isinstance(body, dict) else body  # bytes go as they are, parts in chunks
        given = {"authorization": f"Bearer {self.key}", "content-type": "application/json"} | (headers or {})
        given = {name: value for name, value in given.items() if value is not None}
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, raw, given)
            response = connection.getresponse()
            return SimpleNamespace(status=response.status, headers=dict(response.getheaders()), text=response.read())


def tokenizer_in(folder: Path) -> PublishedTokenizer:
    """A byte-level tokenizer of 320 tokens with a chat template that knows tools."""
    return PublishedTokenizer(published.directory(folder / "model", layers=1), TEMPLATE)


@contextlib.contextmanager
def serving(name: str) -> Iterator[Served]:
    """A server with one model and no key, for tests elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        made = Served({name: tokenizer_in(Path(folder))}, key="")
        made.step()
        yield made
        made.listening.stop(made.service.stop)


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory) -> PublishedTokenizer:
    return tokenizer_in(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def served(chat_tokenizer):
    """A server with one model, `small`, and a key. What it says is in `served.said`."""
    with pytest.MonkeyPatch.context() as patch:
        made = Served({"small": chat_tokenizer})
        for module in (application, listening):
            patch.setattr(module, "say", made.said.append)
        made.step()
        yield made
        made.listening.stop(made.service.stop)


def serve_until(words: list[str], ask: Callable, stop: int = signal.SIGTERM) -> tuple[list, int]:
    """Serve on a free port until `ask`, a function of the address, is through: what it gives, and the exit code."""
    before, port = signal.signal(stop, signal.default_int_handler), free_port()  # as `cli.entry` has it
    got, ended, url = [], threading.Event(), f"http://127.0.0.1:{port}"

    def client():
        try:
            wait_until(lambda: ended.is_set() or is_ready(url), 300)  # programs compile
            got.append(ask(url))
        finally:
            while not ended.is_set():  # again: a callback of the garbage collector may swallow it
                os.kill(os.getpid(), stop)
                ended.wait(10)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        code = main.main(["serve", *words, "--port", str(port)])
    finally:
        ended.set()
        thread.join()
        signal.signal(stop, before)
    return got, code


def is_ready(url: str) -> bool:
    try:
        return get(f"{url}/health") == {"status": "ok"}
    except OSError:
        return False


def get(url: str, **headers: str) -> dict:
    """The JSON at an address; `OSError` if it is refused."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
        return json.load(response)
