"""Rewards for the form of an answer: where sentences end, lengths, patterns and JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.system.errors import UserError
from tpullm.training.rewards import form
from tpullm.training.rewards.form import MASK, mask_brackets, sentences
from tpullm.training.rewards.scorer import Example


def scores(reward, *answers):
    return reward.score([Example(number, answer) for number, answer in enumerate(answers)])


def test_the_edge_of_a_length_is_linear_on_both_sides():
    found = scores(form.length(least=5, most=7, edge=3), *("a" * count for count in range(1, 13)))
    assert found == [0, 0.25, 0.5, 0.75, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_tokens_are_counted_by_the_tokenizer():
    reward = form.length(most=2, unit="tokens", count_tokens=lambda text: len(text.split("x")))
    assert scores(reward, "axb", "axbxc") == [1, 0]


def test_characters_and_words():
    characters = ("が", "か\u3099", " 雨。\n", "a b", "😊")
    words = ("a b  c.", "今日は雨です。", "東京都に、行く", "", "雨 です")
    assert list(map(form.count_characters, characters)) == [1, 1, 2, 3, 1]
    assert list(map(form.count_words, words)) == [3, 4, 4, 0, 2]
    assert form.count_words("今日は雨です。" * 10_000) == 40_000


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
    numbers = {"type": "array", "items": {"type": "number"}}
    assert scores(form.json_schema({"$ref": "#/$defs/numbers", "$defs": {"numbers": numbers}}), answer) == [score]


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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("雨です。晴れです。", ["雨です。", "晴れです。"]),
        ("雨です。。。晴れです", ["雨です。。。", "晴れです"]),
        ("雨です！？本当に?はい!", ["雨です！？", "本当に?", "はい!"]),
        ("雨です\n晴れです\n\n", ["雨です", "晴れです"]),
        ("「雨だ。帰る。」と言った。寝た。", ["「雨だ。帰る。」と言った。", "寝た。"]),
        ("「雨だ。」", ["「雨だ。」"]),
        ("「雨だ。帰る。", ["「雨だ。", "帰る。"]),
        ("雨だ。」帰る。", ["雨だ。", "」帰る。"]),
        ("雨です。（笑）晴れです（本当。本当）。", ["雨です。", "（笑）晴れです（本当。本当）。"]),
        ("雨です。（笑）", ["雨です。"]),
        ("雨です。www 😊 ♪", ["雨です。"]),
        ("雨です。笑", ["雨です。"]),
        ("It rains. It snows! Why?", ["It rains.", "It snows!", "Why?"]),
        ("At 3.50 p.m. Dr. J. Smith, e.g. he, came.", ["At 3.50 p.m. Dr. J. Smith, e.g. he, came."]),
        ("I like tea, coffee, etc.", ["I like tea, coffee, etc."]),
        ("See example.com/?a=b now.", ["See example.com/?a=b now."]),
        ("Wait... What?", ["Wait...", "What?"]),
        ("円周率は３．１４です．次です．", ["円周率は３．１４です．", "次です．"]),
        ("1. りんご\n2. みかん", ["りんご", "みかん"]),
        ("12.5 度です", ["12.5 度です"]),
        ("```\nprint(1). no. \n```\nはい。", ["はい。"]),
        ("。。。！", []),
        ("", []),
    ],
)
def test_sentences(text, parts):
    assert [sentence.text for sentence in sentences(text)] == parts


@pytest.mark.parametrize(
    ("line", "item", "heading", "ended"),
    [
        ("- 雨です。", True, False, True),
        ("・雨", True, False, False),
        ("① 雨", True, False, False),
        ("(2) 雨", True, False, False),
        ("# 雨", False, True, False),
        ("【雨】", False, True, False),
        ("【雨】です。", False, False, True),
        ("-5度です。", True, False, True),
        ("2026年です。", False, False, True),
    ],
)
def test_kinds_of_lines(line, item, heading, ended):
    for sentence in sentences(line):
        assert (sentence.item, sentence.heading, sentence.ended) == (item, heading, ended)


def test_brackets_are_masked_only_if_they_are_closed():
    assert mask_brackets("a「b（c」d）e") == f"a{MASK * 5}d）e"
    assert mask_brackets("（a（b）") == f"（a{MASK * 3}"
    assert mask_brackets("a」b") == "a」b"


@given(st.text(alphabet=st.sampled_from("雨a1 。!.「」（）()\n-#"), max_size=40))
def test_nothing_is_lost_and_nothing_is_added(text):
    found, at = sentences(text), 0
    for sentence in found:
        assert len(sentence.text) == len(sentence.masked) and sentence.text == sentence.text.strip() != ""
        at = text.index(sentence.text, at) + len(sentence.text)  # in their order
    said = "".join(sentence.text for sentence in found)
    assert sum(map(str.isalpha, said)) <= sum(map(str.isalpha, text))
    if not set("「（(") & set(text):
        assert said.count("雨") == text.count("雨")
