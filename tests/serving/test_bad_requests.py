"""Whatever is wrong in a request, the client gets an error in OpenAI's form, and the log one line."""

import gc
import json
import weakref

import pytest

from tests.conftest import wait_until
from tpullm.serving.application import MOST_BODY_BYTES
from tpullm.serving.completions import ChatReply
from tpullm.serving.refusal import Refusal
from tpullm.tokenizer.chat_template import ChatTemplate

TEXT = {"model": "small", "prompt": "The cat", "max_tokens": 2}
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PATHS = {"/v1/completions": TEXT, "/v1/chat/completions": CHAT}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# Wrong values of fields that both paths have.
BOTH = {
    "temperature": [-0.1, 2.1, "1", True, 1e400, 10**400],
    "top_p": [0, 1.1],
    "top_k": [1.5, -2],
    "min_p": [1.1],
    "n": [0, 129],
    "seed": ["7", 1 << 70],
    "stop": [["a", 2], [""], ["a"] * 5, "x" * 257],
    "stream": ["true"],
    "stream_options": [{"include_usage": True}, {}],
    "logit_bias": [[], {"a": 1}, {"1": 101}, {"1": True}, {"-1": 1}, {"99999": 1}, {"1": None}],
    "presence_penalty": [2.1],
    "frequency_penalty": [-2.01],
    "max_tokens": [0],
    "model": [1, "", "other", "small/", "x" * 10_000, "\u0000", "モデル"],
    "best_answer": [1],
}
OF_TEXTS = {
    "prompt": [1, {}, [], [""] * 129, [[]], [1, "a"], [-1], [1 << 40], [[1], 2], [True], "\ud800", None],
    "logprobs": [-1, 21],
    "echo": [1],
    "suffix": ["end"],
    "best_of": [2, 0],
    "messages": [CHAT["messages"]],
}


def user(**changes) -> list[dict]:
    return [{"role": "user", "content": "hi"} | changes]


def asking(schema) -> dict:
    return {"type": "json_schema", "json_schema": schema}


FUNCTIONS = ({}, {"name": "f"}, {"name": "f", "arguments": {}}, {"name": "f", "arguments": "["})
TOOL_FUNCTIONS = ({}, {"name": ""}, {"name": "a b"}, {"name": "f", "parameters": 1})
LARGE = ({"type": "integer", "minimum": -(10**300)}, {"enum": [10**4000]}, {"enum": ["x" * 70_000]})
SCHEMAS = (*LARGE, "a", {"type": "no"}, {"enum": []})  # more are in `test_token_masks.py`
OF_MESSAGES = {
    "messages": [
        *(1, [], [1], [{}], None, user(role=1), user(role="function", name="f"), user() * 2_049),
        *(user(content=content) for content in (1, None, "<|im_end|>")),
        *(user(content=[part]) for part in (1, {"type": "text"}, {"type": "text", "text": 1})),
        *(user(content=[{"type": kind, kind: {}}]) for kind in ("image_url", "input_audio")),
        *(user(colour="red"), user(annotations=[]), user(tool_calls=[TOOL])),
        [{"role": "tool", "content": "a"}],
        [{"role": "assistant", "content": None, "tool_calls": [1]}],
        *([{"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}] for function in FUNCTIONS),
    ],
    "max_completion_tokens": [0],
    "logprobs": [1],
    "top_logprobs": [1],
    "response_format": [
        *(1, "json", {"type": "poem"}, {"type": "json_schema"}, {"type": "json_object", "schema": {}}, asking({})),
        *(asking({"name": "a", "schema": schema}) for schema in SCHEMAS),
    ],
    "tools": [
        *({}, [1], [{}], [{"type": "web"}], [{"type": "function"}], [TOOL, TOOL], [TOOL] * 129, [TOOL | {"colour": 1}]),
        *([{"type": "function", "function": function}] for function in TOOL_FUNCTIONS),
    ],
    "tool_choice": [1, "any", "required", {"type": "function"}, {"type": "function", "function": {"name": "g"}}],
    "parallel_tool_calls": ["no"],
    "modalities": [["audio"]],
    "function_call": ["none"],
    "prompt": ["hi"],
    "reasoning_effort": ["high"],
}
CASES = [
    (path, field, value)
    for path, fields in (*((path, BOTH) for path in PATHS), *zip(PATHS, (OF_TEXTS, OF_MESSAGES), strict=True))
    for field, values in fields.items()
    for value in values
]
BODIES = (
    *(b"", b"[]", b'{"model": "\xff"}', json.dumps(TEXT).encode("utf-16"), json.dumps(TEXT).encode() + b"x"),
    b'{"model": "small", "prompt": "a", "temperature": NaN}',
    b'{"model": "small", "prompt": "a", "temperature": -Infinity}',
    b"[" * 100_000,
    b'{"model": "small", "tools": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
    b'{"model": "small", "prompt": "a", "seed": ' + b"9" * 5_000 + b"}",
    b'{"model": "small", "prompt": "\\ud83d"}',  # half a character
)


@pytest.fixture
def is_refused(served):
    """Whether a request is refused with a status, in OpenAI's form and with one line; gives the error."""

    def ask(status: int, *request, **options) -> dict:
        before = len(served.said)
        answer = served.ask(*request, **options)
        assert answer.status == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        error = json.loads(answer.text)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        assert error["type"].endswith("_error") and len(error["message"]) < 1_000
        (line,) = served.said[before:]
        assert f" {status} " in line and "\n" not in line and len(line) <= 501
        return error

    return ask


@pytest.mark.parametrize(("path", "field", "value"), CASES, ids=lambda value: str(value)[:40])
def test_a_wrong_value(is_refused, path, field, value):
    body = {name: given for name, given in (PATHS[path] | {field: value}).items() if given is not None}
    raw = json.dumps(body).replace("Infinity", "1e400").encode()
    error = is_refused(404 if field == "model" and isinstance(value, str) else 400, path, raw)
    assert field in error["message"] or field in str(error["param"]) or error["message"].startswith("the body")


PACKED = {"content-encoding": "gzip"}
KINDS = (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
HOSTS = ("[", "[::1", "a/b?c", "a b", "]:x", "", "x" * 5_000)
NO_PATHS = ("/nothing", "/v1", "/v1/", "/v1/embeddings", "/v1/completions/", "//", "/%00", "/v1/models/no")
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
REFUSED = [
    *((415, path, body, {"headers": {"content-type": kind}}) for path, body in PATHS.items() for kind in KINDS),
    (415, "/v1/completions", TEXT, {"headers": PACKED}),
    *((404, "/nothing", None, {"headers": {"host": host}}) for host in HOSTS),
    *((404, path, None, {}) for path in NO_PATHS),
    *((405, "/v1/completions", None, {"method": method}) for method in METHODS),
    (413, "/v1/completions", b" " * (MOST_BODY_BYTES + 1), {}),
    (413, "/v1/completions", [b" " * (1 << 20)] * 5, {"method": "POST"}),  # in chunks, without a length
    *((400, "/v1/completions", body, {}) for body in BODIES),
]


@pytest.mark.parametrize(("status", "path", "body", "options"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_request_that_is_wrong_around_its_body(is_refused, status, path, body, options):
    is_refused(status, path, iter(body) if isinstance(body, list) else body, **options)


def test_headers_that_came_whole_and_are_too_long(is_refused):
    error = is_refused(431, "/v1/completions", TEXT, headers={f"x-{n}": "x" * 3_000 for n in range(11)})
    assert "the headers have more than 32,768 bytes" in error["message"]


def test_a_request_with_two_lengths(is_refused):
    """The server and a proxy before it may read different requests (request smuggling)."""
    headers = {"content-length": "2", "transfer-encoding": "chunked"}
    error = is_refused(400, "/v1/completions", iter([b"{}"]), headers=headers)
    assert "Content-Length and Transfer-Encoding" in error["message"]


def test_messages_that_can_not_fit_together_are_refused_when_little_of_them_is_split(is_refused, served, monkeypatch):
    tokenizer, split = served.service.models["small"].tokenizer, []
    plain = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: split.append(len(text)) or plain(text))
    error = is_refused(400, "/v1/chat/completions", CHAT | {"messages": user(content="a b " * 50) * 2_000})
    assert error["code"] == "context_length_exceeded" and 200 <= sum(split) < 10_000


def test_what_was_read_for_a_refused_request_is_freed_at_once(is_refused, monkeypatch):
    """By counts of references alone: the next search for cycles may be a minute away, and a form take 40 MB."""
    large = []

    class Large:
        pass

    def make_masks(reply, kept):
        held = Large()
        large.append(weakref.ref(held))
        raise Refusal("too large")

    monkeypatch.setattr(ChatReply, "make_masks", make_masks)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1]}}}
    gc.disable()
    try:
        is_refused(400, "/v1/chat/completions", CHAT | {"response_format": form})
        wait_until(lambda: large and all(one() is None for one in large), 5)
    finally:
        gc.enable()


def test_no_error_tells_where_the_model_lies(is_refused, served, monkeypatch):
    tokenizer = served.service.models["small"].tokenizer
    template = "{{ raise_exception('system messages are not known') }}"
    monkeypatch.setattr(tokenizer, "_chat", ChatTemplate(template, {}, str(tokenizer.folder)))
    error = is_refused(400, "/v1/chat/completions", CHAT)
    assert error["message"] == "small: its chat template can't show these messages (system messages are not known)"


KEYS = (None, "", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer a-key-of-the-test", "\xff")


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/v1/models/small", "/metrics"])
def test_a_wrong_key(is_refused, path):
    for shown in KEYS:
        error = is_refused(401, path, PATHS.get(path), headers={"authorization": shown})
        assert error["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"temperature": 3}, "temperature", "should be less than or equal to 2"),
        ({"stop": ["a", 1]}, "stop[1]", "should be a valid string"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "'99999' is not a token of this model"),
        ({"sampler": 1}, "sampler", "is not a field that this server knows; leave it out"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "king"}]}, "messages[0].role", "is not one of system, "),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "is missing"),
        ({"top_logprobs": 1}, "top_logprobs", "needs logprobs: true"),
    ],
)
def test_an_error_names_the_field_and_says_what_is_wrong(is_refused, changes, param, told):
    error = is_refused(400, "/v1/chat/completions", CHAT | changes)
    assert error["param"] == param and error["message"].startswith(f"{param}: {told}")
