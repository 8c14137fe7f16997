import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.serving.answer_text import Part, ToolText, joined, whole_calls

ONE = '<tool_call>\n{"name": "f", "arguments": {"x": "}\\"]猫</tool_call>", "y": [{}]}}\n</tool_call>'
TWO = '<tool_call>{"arguments": {"a": 1}, "name": "g"}</tool_call>'
NONE = "<tool_call>not JSON</tool_call>"
NO_NAME = '<tool_call>{"name": 1, "arguments": {}}</tool_call>'


class Pieces:
    """Stands in for the text of an answer: the tokens are its pieces."""

    def add(self, piece: Part) -> Part:
        return piece


def heard(text: str, cuts=(), several=True, ends="stop") -> list[Part]:
    """The parts for a text that comes in pieces."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
    made, parts = ToolText(Pieces(), several), []
    for number, piece in enumerate(pieces):
        parts.append(made.add(Part(piece, (), ends if number == len(pieces) - 1 else "")))
        if parts[-1].ends:
            break
    return parts


def calls(parts: list[Part]) -> list[tuple[str, str]]:
    functions = [call["function"] for call in whole_calls(joined(parts).calls)]
    return [(function["name"], function["arguments"]) for function in functions]


EXPECTED = {
    "no call": ("no call", [], "stop"),
    ONE: ("", [("f", '{"x": "}\\"]猫</tool_call>", "y": [{}]}')], "tool_calls"),
    TWO: ("", [("g", '{"a": 1}')], "tool_calls"),
    f"first\n{TWO}\n{TWO}\n": ("first\n", [("g", '{"a": 1}')] * 2, "tool_calls"),
    f"{TWO} after": ("after", [("g", '{"a": 1}')], "tool_calls"),
    NONE: (NONE, [], "stop"),
    f"{NONE}{TWO}": (NONE, [("g", '{"a": 1}')], "tool_calls"),
    NO_NAME: (NO_NAME, [], "stop"),
    '<tool_call>{"name": "h"}</tool_call>': ("", [("h", "{}")], "tool_calls"),
    "<tool_call>[1]</tool_call>": ("<tool_call>[1]</tool_call>", [], "stop"),
    '<tool_call>{"name": "f", "arg': ('<tool_call>{"name": "f", "arg', [], "stop"),
    '<tool_call>{"name": "f", "arguments": {"x"': ("", [("f", '{"x"')], "tool_calls"),
    "a <tool_c": ("a <tool_c", [], "stop"),
}


@given(text=st.sampled_from(sorted(EXPECTED)), cuts=st.lists(st.integers(0, 200), max_size=200))
def test_calls_are_found_however_the_text_comes(text, cuts):
    said, found, ends = EXPECTED[text]
    parts = heard(text, cuts)
    whole = joined(parts)
    assert (whole.text, calls(parts), whole.ends) == (said, found, ends)


def test_arguments_are_told_while_they_are_written():
    parts = heard(ONE, range(200))
    begun = next(number for number, part in enumerate(parts) if part.calls)
    first = parts[begun].calls[0]
    assert first["function"]["name"] == "f" and first["id"].startswith("call_") and first["index"] == 0
    more = [call for part in parts[begun + 1 :] for call in part.calls]
    assert len(more) > 20 and not any("id" in call for call in more)


def test_a_part_has_one_delta_for_each_call():
    """An answer that was cut off says so."""
    assert joined(heard(ONE, ends="length")).ends == "length"
    (part,) = heard(f"{ONE}{TWO}")
    assert [call["index"] for call in part.calls] == [0, 1]
    assert json.loads(part.calls[0]["function"]["arguments"])["y"] == [{}]


@pytest.mark.parametrize("cuts", [(), range(300)])
def test_the_first_call_ends_an_answer_that_may_have_one(cuts):
    parts = heard(f"{TWO}{ONE}", cuts, several=False)
    assert [name for name, _ in calls(parts)] == ["g"] and parts[-1].ends == "tool_calls"
    assert len(parts) < 100
