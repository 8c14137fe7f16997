import itertools
import json
import subprocess
import sys
import threading

import jsonschema
import numpy as np
import pytest

from tests.conftest import wait_until
from tpullm.serving import token_masks
from tpullm.serving.grammar_trial import Vocabulary
from tpullm.serving.refusal import Refusal
from tpullm.serving.token_masks import Grammars, schema_grammar
from tpullm.system.process.limited import Limited

SPARE = 5
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCHEMAS = [
    {"enum": ["猫", 1, None]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 17}, "b": {"$ref": "#/$defs/b"}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "$defs": {"b": {"anyOf": [{"type": "null"}, {"const": "x y"}]}},
    },
]


@pytest.fixture(scope="module")
def grammars(chat_tokenizer):
    return Grammars(chat_tokenizer, chat_tokenizer.vocabulary_size + SPARE)


def walked(tokenizer, allowed, rng) -> list[int]:
    """The ids of an answer that takes any token that is allowed, until it ends."""
    ids = []
    while not ids or ids[-1] not in tokenizer.stop_ids:
        ids.append(int(rng.choice(np.flatnonzero(allowed(tuple(ids))))))
        assert len(ids) < 400, "it does not end"
    return ids


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_whatever_is_chosen_satisfies_the_schema(chat_tokenizer, grammars, schema):
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids = walked(chat_tokenizer, grammars.mask(schema_grammar(schema, "p"), "p"), rng)
        jsonschema.validate(json.loads(chat_tokenizer.decode(ids)), schema)


def test_what_stands_for_no_token_is_never_allowed(grammars, chat_tokenizer):
    allowed_V = grammars.mask(schema_grammar({}, "p"), "p")(())
    assert len(allowed_V) == chat_tokenizer.vocabulary_size + SPARE and not allowed_V[-SPARE:].any()
    assert allowed_V.any() and not allowed_V[chat_tokenizer.stop_ids].any()


@pytest.mark.parametrize("text", ["1", "x"])
def test_after_the_end_and_what_the_grammar_forbids_only_the_end_is_allowed(chat_tokenizer, grammars, text):
    allowed = grammars.mask(schema_grammar({"const": 1}, "p"), "p")
    assert set(np.flatnonzero(allowed(tuple(chat_tokenizer.encode(text))))) == set(chat_tokenizer.stop_ids)


def test_an_answer_may_be_computed_again(chat_tokenizer, grammars):
    schema = SCHEMAS[3]
    ids = walked(chat_tokenizer, grammars.mask(schema_grammar(schema, "p"), "p"), np.random.default_rng(1))
    allowed = grammars.mask(schema_grammar(schema, "p"), "p")
    once = [allowed(tuple(ids[:length])) for length in range(len(ids))]
    for length in (0, 3, 1, len(ids) - 1):
        np.testing.assert_array_equal(allowed(tuple(ids[:length])), once[length])


def test_a_form_is_compiled_once_for_all_answers(served, monkeypatch):
    """And not in the thread that reads requests."""
    compiled, plain = [], Vocabulary.matcher

    def matcher(self, grammar):
        compiled.append(threading.current_thread().name)
        return plain(self, grammar)

    monkeypatch.setattr(Vocabulary, "matcher", matcher)
    tried, call = [], Limited.call
    monkeypatch.setattr(Limited, "call", lambda *arguments: tried.append(arguments) or call(*arguments))
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["猫", "犬"]}}}
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "n": 5, "response_format": form}
    for _ in range(2):  # the second request finds it
        answer = json.loads(served.ask("/v1/chat/completions", body).text)
        assert {choice["message"]["content"] for choice in answer["choices"]} <= {'"猫"', '"犬"'}
        assert len(answer["choices"]) == 5
    forms = [arguments for arguments in tried if "check_grammar" in arguments[2]]
    assert len(forms) == len(compiled) == 1 and compiled[0].startswith("compiles forms")


def test_of_forms_that_take_long_the_last_one_is_kept(chat_tokenizer, monkeypatch):
    """And of the simple ones the last 16."""
    monkeypatch.setattr(token_masks, "_SIMPLE_SECONDS", -1)
    grammars, compiled, plain = Grammars(chat_tokenizer, chat_tokenizer.vocabulary_size), [], Vocabulary.matcher
    monkeypatch.setattr(Vocabulary, "matcher", lambda *of: compiled.append(1) or plain(*of))

    def count(*names):
        compiled.clear()
        for name in names:
            grammars.of_grammar(grammars.mask(schema_grammar({"const": name}, "p"), "p").grammar)
        return len(compiled)

    assert count("a", "a", "b", "a") == 3
    monkeypatch.setattr(token_masks, "_SIMPLE_SECONDS", 60)
    assert count(*range(17), *range(1, 17), 0) == 18
    assert count(2, "new", 2) == 1, "the one that was asked for last goes last"


def test_slow_masks_are_computed_in_another_thread_and_are_the_same(chat_tokenizer, grammars, monkeypatch):
    allowed, threads = grammars.mask(schema_grammar(SCHEMAS[3], "p"), "p"), set()
    ids = tuple(walked(chat_tokenizer, allowed, np.random.default_rng(1)))
    assert not allowed.is_slow()
    seconds = itertools.count()
    takes_long = lambda: threads.add(threading.current_thread().name) or next(seconds)  # noqa: E731
    monkeypatch.setattr(token_masks.time, "thread_time", takes_long)
    slow = grammars.mask(schema_grammar(SCHEMAS[3] | {"title": "compiled by itself"}, "p"), "p").copy()
    assert slow.is_slow() and len(threads) == 1
    for length in range(len(ids)):
        wait_until(lambda length=length: slow.is_ready(ids[:length]))
        np.testing.assert_array_equal(slow(ids[:length]), allowed(ids[:length]))
    assert slow.is_slow() and any(name.startswith("computes slow masks") for name in threads)


@pytest.mark.parametrize(("milliseconds", "is_slow"), [(0.15, False), (0.3, True)])
def test_an_ordinary_form_on_a_busy_processor_is_not_slow(milliseconds, is_slow, chat_tokenizer, grammars, monkeypatch):
    times = itertools.count()
    monkeypatch.setattr(token_masks.time, "thread_time", lambda: next(times) * milliseconds / 1000)
    allowed = grammars.mask(schema_grammar(SCHEMAS[3] | {"title": f"{milliseconds} ms"}, "p"), "p")
    ids = tuple(walked(chat_tokenizer, allowed, np.random.default_rng(1)))
    for _ in range(100):
        allowed(ids[:1])
    assert allowed.is_slow() is is_slow


def test_a_form_is_tried_at_low_priority():
    """In a process of its own, whose session has little weight too."""
    code = (
        "import os; from tpullm.serving.grammar_trial import check_grammar as check; "
        "group = '/proc/self/autogroup'; error = check('start: \"a\" <[300]>', 301); "
        "print(error, os.nice(0), open(group).read().split()[-1] if os.path.exists(group) else 10)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert done.stdout.split() == ["10", "10"], done.stderr


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "no"}, "Invalid type"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"enum": ["x" * 70_000]}, "more than 65,536 bytes"),
        ({"not": {"type": "string"}}, "not"),
        pytest.param({"allOf": [{"pattern": f".*{one}.*"} for one in LETTERS]}, "more than 1 s", marks=pytest.mark.ci),
    ],
)
def test_a_schema_that_is_wrong_or_too_large(grammars, schema, told):
    with pytest.raises(Refusal, match=told) as raised:
        grammars.mask(schema_grammar(schema, "response_format"), "response_format")
    assert raised.value.param == "response_format" and len(str(raised.value)) < 400
