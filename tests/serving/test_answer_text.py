import asyncio
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.engine.request import Token, until_stop_text, whole_characters
from tpullm.serving.answer_text import AnswerText, Part, ToolText, joined, whole_calls
from tpullm.serving.answer_writing import Post
from tpullm.serving.call_forms import FORMS

STOP = 319  # `<|im_end|>` of the tests' tokenizer


def written(tokenizer, ids, stops=(), ends="length") -> list[Part]:
    """The parts of an answer, up to the one that ends it."""
    text, parts = AnswerText(tokenizer, tuple(stops), (STOP,)), []
    for number, token in enumerate(ids):
        parts.append(text.add(Token(token, -1.0, (), ends if number == len(ids) - 1 else "")))
        if parts[-1].ends:
            break
    return parts


@given(st.text("ab猫🐈。", min_size=1), st.lists(st.text("ab猫。", min_size=1, max_size=3), max_size=3))
def test_the_text_is_that_before_the_first_stop(chat_tokenizer, text, stops):
    ids = chat_tokenizer.encode(text)
    found = joined(written(chat_tokenizer, ids, stops))
    assert found.text == "".join(until_stop_text(whole_characters(chat_tokenizer, ids), stops))
    assert found.ends == ("stop" if any(stop in text for stop in stops) else "length")
    assert [token.id for token, _ in found.tokens] == ids[: len(found.tokens)]
    assert all(place < len(found.text) for _, place in found.tokens)
    if found.ends == "length":
        assert len(found.tokens) == len(ids)


@given(st.text("ab猫🐈。", min_size=1))
def test_a_token_comes_with_its_text_and_its_place(chat_tokenizer, text):
    ids, told = chat_tokenizer.encode(text), ""
    for part in written(chat_tokenizer, ids):
        told += part.text
        assert all(place < len(told) for _, place in part.tokens)
        assert "\ufffd" not in part.text
    for token, place in joined(written(chat_tokenizer, ids)).tokens:
        held = chat_tokenizer.bytes_of(token.id)
        whole = held.decode(errors="ignore")
        assert text[place:].startswith(whole) or not text.encode()[len(text[:place].encode()) :].startswith(held)


def test_the_token_that_ends_a_text_is_not_in_it(chat_tokenizer):
    parts = written(chat_tokenizer, [*chat_tokenizer.encode("ab"), STOP], ends="stop")
    found = joined(parts)
    assert (found.text, found.ends) == ("ab", "stop") and STOP not in [token.id for token, _ in found.tokens]


def test_what_may_become_a_stop_waits_with_its_token_and_comes_at_the_end(chat_tokenizer):
    ids = chat_tokenizer.encode("xa")
    assert len(ids) == 2
    first, second = written(chat_tokenizer, ids, ["ab"])
    assert (first.text, second.text) == ("x", "a") and [len(part.tokens) for part in (first, second)] == [1, 1]
    text = AnswerText(chat_tokenizer, ("ab",), (STOP,))
    text.add(Token(ids[0], -1.0))
    assert not text.add(Token(ids[1], -1.0))


def test_half_a_character_at_the_end_is_told(chat_tokenizer):
    half = chat_tokenizer.encode("🐈")[:1]
    assert joined(written(chat_tokenizer, half)).text == "\ufffd"


ONE = '<tool_call>\n{"name": "f", "arguments": {"x": "}\\"]猫</tool_call>", "y": [{}]}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "g", "arguments": {"a": 1}}\n</tool_call>'


PIECES = SimpleNamespace(bytes_of=str.encode)  # a tokenizer of which each token is its text


def heard(text: str, cuts=(), several=True, ends="stop", stops=(), form=FORMS[0], names=("f", "g")) -> list[Part]:
    """The parts for a text that comes in pieces, which stand for its tokens."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    made, parts = AnswerText(PIECES, stops, (), ToolText(form, names, several)), []
    for start, end in itertools.pairwise(places):
        parts.append(made.add(Token(text[start:end], -1.0, (), ends if end == len(text) else "")))
        if parts[-1].ends:
            break
    return parts


def calls(parts: list[Part]) -> list[tuple[str, str]]:
    functions = [call["function"] for call in whole_calls(joined(parts).calls)]
    return [(function["name"], function["arguments"]) for function in functions]


EXPECTED = {
    "no call": ("no call", [], "stop"),
    ONE: ("", [("f", '{"x": "}\\"]猫</tool_call>", "y": [{}]}')], "tool_calls"),
    f"first\n{TWO}\n{TWO}\n": ("first\n", [("g", '{"a": 1}')] * 2, "tool_calls"),
    '<tool_call>\n{"name": "f", "arg': ('<tool_call>\n{"name": "f", "arg', [], "stop"),
    '<tool_call>\n{"name": "f", "arguments": {"x"': ("", [("f", '{"x"')], "stop"),
    f"I write <tool_call> as a mark. {TWO}": ("I write <tool_call> as a mark. ", [("g", '{"a": 1}')], "tool_calls"),
    TWO.replace('"g"', '"rm_rf"'): (TWO.replace('"g"', '"rm_rf"'), [], "stop"),
    TWO.replace('"g"', '"ff"') + TWO: (TWO.replace('"g"', '"ff"'), [("g", '{"a": 1}')], "tool_calls"),
    "a <tool_c": ("a <tool_c", [], "stop"),
}


@given(text=st.sampled_from(sorted(EXPECTED)), cuts=st.lists(st.integers(0, 200), max_size=200))
def test_calls_are_found_however_the_text_comes(text, cuts):
    said, found, ends = EXPECTED[text]
    parts = heard(text, cuts)
    whole = joined(parts)
    assert (whole.text, calls(parts), whole.ends) == (said, found, ends)


@given(cuts=st.lists(st.integers(0, 200), max_size=200))
def test_a_stop_text_stops_what_is_said_and_no_call(cuts):
    stopped = joined(heard(f"a\n{TWO}", cuts, stops=("\n",)))
    assert (stopped.text, stopped.ends, stopped.calls) == ("a", "stop", ())
    assert "".join(token.id for token, _ in stopped.tokens).startswith("a")
    for stops in (("arg", "1"), ("a<", "\n"), ("call>",)):
        parts = heard(f"a{TWO}", cuts, stops=stops)
        assert (joined(parts).text, calls(parts), parts[-1].ends) == ("a", [("g", '{"a": 1}')], "tool_calls")
        assert "".join(token.id for token, _ in joined(parts).tokens) == f"a{TWO}"
    parts = heard("<tool_call> no", cuts, stops=("> n",))
    assert (joined(parts).text, parts[-1].ends) == ("<tool_call", "stop")


def test_a_mark_that_begins_no_call_holds_nothing_back():
    """Each token's work is bounded: all that is held is the beginning of a call."""
    made = AnswerText(PIECES, (), (), ToolText(FORMS[0], ["f"], True))
    assert made.add(Token("<tool_call>", -1.0)).text == ""
    assert made.add(Token("  ", -1.0)).text == "<tool_call>  " and made.add(Token(" ", -1.0)).text == " "


def test_arguments_are_told_while_they_are_written():
    parts = heard(ONE, range(200))
    begun = next(number for number, part in enumerate(parts) if part.calls)
    first = parts[begun].calls[0]
    assert first["function"]["name"] == "f" and len(first["id"]) == 9 and first["index"] == 0
    more = [call for part in parts[begun + 1 :] for call in part.calls]
    assert len(more) > 20 and not any("id" in call for call in more)


def test_a_part_has_one_delta_for_each_call():
    """An answer that was cut off says so."""
    assert joined(heard(ONE, ends="length")).ends == "length"
    (part,) = heard(f"{ONE}\n{TWO}")
    assert [call["index"] for call in part.calls] == [0, 1]
    assert json.loads(part.calls[0]["function"]["arguments"])["y"] == [{}]


@pytest.mark.parametrize("cuts", [(), range(300)])
def test_the_first_call_ends_an_answer_that_may_have_one(cuts):
    parts = heard(f"{TWO}\n{ONE}", cuts, several=False)
    assert [name for name, _ in calls(parts)] == ["g"] and parts[-1].ends == "tool_calls"
    assert len(parts) < 100


def test_what_is_told_arrives_in_its_order_and_much_of_it_in_one_call():
    async def heard() -> tuple[list, list, int]:
        loop, calls = asyncio.get_running_loop(), []
        soon = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: (calls.append(1), soon(*given))[1]
        post, one, other = Post(), asyncio.Queue(), asyncio.Queue()
        for first in (0, 500):  # the second time the loop has delivered all of the first
            with ThreadPoolExecutor(1) as threads:  # the loop does nothing meanwhile
                for n in range(500):
                    threads.submit(lambda *given: [post.put(queue, *given) for queue in (one, other)], first, n)
            await asyncio.sleep(0)
        queues = [[await asyncio.wait_for(queue.get(), 9) for _ in range(1000)] for queue in (one, other)]
        return *queues, len(calls)

    one, other, calls = asyncio.run(heard())
    assert one == other == [(first, n) for first in (0, 500) for n in range(500)]
    assert calls == 2


def test_what_is_told_when_the_loop_is_gone_is_lost_without_a_word():
    async def made() -> tuple[Post, asyncio.Queue]:
        return Post(), asyncio.Queue()

    post, queue = asyncio.run(made())
    post.put(queue, 0, 1)
