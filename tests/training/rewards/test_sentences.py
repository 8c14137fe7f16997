"""Text is split where its sentences end, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.training.rewards.form import MASK, mask, sentences


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
    assert mask("a「b（c」d）e") == f"a{MASK * 5}d）e"
    assert mask("（a（b）") == f"（a{MASK * 3}"
    assert mask("a」b") == "a」b"


@given(st.text(alphabet=st.sampled_from("雨a1 。!.「」（）()\n-#"), max_size=40))
def test_nothing_is_lost_and_nothing_is_added(text):
    found = sentences(text)
    at = 0
    for sentence in found:
        assert len(sentence.text) == len(sentence.masked) and sentence.text == sentence.text.strip() != ""
        at = text.index(sentence.text, at) + len(sentence.text)  # in their order
    said = "".join(sentence.text for sentence in found)
    assert sum(map(str.isalpha, said)) <= sum(map(str.isalpha, text))
    if not set("「（(") & set(text):
        assert said.count("雨") == text.count("雨")
