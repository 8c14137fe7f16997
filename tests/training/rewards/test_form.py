"""Rewards for the form of an answer, beyond their samples."""

import pytest

from tpullm.system.errors import UserError
from tpullm.training.rewards import form
from tpullm.training.rewards.scorer import Example


def scores(reward, *answers):
    return reward.score([Example(number, answer) for number, answer in enumerate(answers)])


def test_the_edge_of_a_length_is_linear_on_both_sides():
    found = scores(form.length(least=5, most=7, edge=3), *("a" * count for count in range(1, 13)))
    assert found == [0, 0.25, 0.5, 0.75, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_tokens_are_counted_by_the_tokenizer():
    assert scores(
        form.length(most=2, unit="tokens", count_tokens=lambda text: len(text.split("x"))), "axb", "axbxc"
    ) == [1, 0]


@pytest.mark.parametrize(("text", "count"), [("が", 1), ("か\u3099", 1), (" 雨。\n", 2), ("a b", 3), ("😊", 1)])
def test_characters(text, count):
    assert form.count_characters(text) == count


@pytest.mark.parametrize(
    ("text", "count"), [("a b  c.", 3), ("今日は雨です。", 4), ("東京都に、行く", 4), ("", 0), ("雨 です", 2)]
)
def test_words(text, count):
    assert form.count_words(text) == count


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(a|aa)+$b", r"(.*)*x"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_pattern_that_backtracks_for_ever_is_one_line(monkeypatch, pattern, whole):
    monkeypatch.setattr(form, "PATTERN_SECONDS", 0.1)
    reward = form.matches(pattern, whole)
    answer = "a" * 60 + "c"
    try:
        assert scores(reward, answer) == [0]  # the engine may see that it can't match
    except UserError as error:
        assert str(error).startswith(f"example 0: pattern: {pattern} takes more than 0.1 s on this answer; write it")


def test_a_trap_of_a_pattern_is_stopped(monkeypatch):
    monkeypatch.setattr(form, "PATTERN_SECONDS", 0.1)
    trap = r"(?:a|a|aa)+$"
    with pytest.raises(UserError, match="example 1: pattern: .* takes more than 0.1 s"):
        scores(form.matches(trap), "a", "a" * 60 + "c")
    with pytest.raises(UserError, match="example 0: pattern: .* takes more than 0.1 s"):
        scores(form.json_schema({"type": "string", "pattern": trap}), f'"{"a" * 60}c"')


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("[1, 2]", 1),
        ('[1, "2"]', 0),
        ("[1, 2]]", 0),
        ("```\n[1]\n```", 1),
        ("```json\n[1]\n```\nはい", 0),
        ("[" * 100_000, 0),
        ("[Infinity]", 0),
        ("[-Infinity]", 0),
        ("9" * 5_000, 0),
        ("\ud800", 0),
    ],
)
def test_json(answer, score):
    assert scores(form.json_schema({"$ref": "#/$defs/numbers", "$defs": {"numbers": _NUMBERS}}), answer) == [score]


_NUMBERS = {"type": "array", "items": {"type": "number"}}


def test_a_schema_may_have_patterns():
    reward = form.json_schema({"anyOf": [{"type": "string", "pattern": "雨$"}, {"type": "number", "pattern": "x"}]})
    assert scores(reward, '"大雨"', '"雨天"', "3") == [1, 0, 1]
    assert form.json_schema({"properties": {"$ref": {"type": "string"}}})  # a property of that name is no reference


def test_repetition_falls_with_each_round():
    once = "明日の天気は晴れのち曇りです。"
    found = scores(form.no_repetition(), once, once * 2, once * 3, once * 10)
    assert found[0] == 1 and sorted(found, reverse=True) == found and len(set(found)) == 4


def test_a_repetition_within_what_is_allowed_is_free():
    # 12 runs of two characters, one of which occurs twice.
    text = "abcdefghijkab"
    assert scores(form.no_repetition(size=2, allowed=0.1), text) == [1]
    assert scores(form.no_repetition(size=2, allowed=0.0), text) == [11 / 12]
    assert scores(form.no_repetition(size=1, allowed=0.0), "aabb") == [0.5]
