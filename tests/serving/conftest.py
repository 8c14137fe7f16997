"""A server in this process, over the stand-in for an engine."""

import contextlib
import http.client
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.formats.huggingface import published
from tests.serving.stand_in import StandIn, session_of
from tpullm.serving import application, listening
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import Stepping
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
    """A running server.

    Attributes:
        engine: its stand-in.
        said: the lines of its log.
    """

    def __init__(self, tokenizers: dict, key: str = KEY, queue: int = 64, hosts: frozenset = frozenset()):
        sessions = {name: session_of(tokenizer) for name, tokenizer in tokenizers.items()}
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
        """Compile, and let the engines run in a thread."""
        self.stepping.compile()
        threading.Thread(target=self.stepping.run, daemon=True).start()

    def ask(self, path: str, body=None, method: str = "", headers: dict | None = None) -> SimpleNamespace:
        """The answer to one request, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = json.dumps(body).encode() if isinstance(body, dict) else body  # bytes go as they are, parts in chunks
        given = {"authorization": f"Bearer {self.key}", "content-type": "application/json"} | (headers or {})
        given = {name: value for name, value in given.items() if value is not None}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, raw, given)
            response = connection.getresponse()
            return SimpleNamespace(status=response.status, headers=dict(response.getheaders()), text=response.read())
        finally:
            connection.close()


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
    """The tokenizer of the tests of the server."""
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
