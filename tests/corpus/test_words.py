"""Words: nothing of a text is lost, equal words have equal numbers, and Japanese ones are as many as Sudachi's."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.filters import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't (see example.org/a-b), please!", ["Don't", "(", "see", "example.org/a-b", ")", ",", "please", "!"]),
        ("一匹の黒い猫がいた。", ["一匹", "の", "黒", "い", "猫", "がい", "た", "。"]),
        ("コンピューターはPython3.13で書く", ["コンピューター", "は", "Python3", ".", "13", "で", "書", "く"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा", "।"]),  # the marks of vowels belong to their words
        ("ภาษาไทย", ["ภาษา", "ไทย"]),
        ("... --", [".", ".", ".", "-", "-"]),
        (" \n", []),
    ],
)  # fmt: skip
def test_a_text_is_split(text, expected):
    assert words.split(text) == expected


@given(st.text(st.sampled_from("aé' .-。、猫の子カナー\n　9"), max_size=80))
def test_only_white_space_is_lost(text):
    assert "".join(words.split(text)) == "".join(text.split())


@given(st.lists(st.sampled_from(["a", "bb", "9", "c3", "..", "–", "。", "猫", "_", "€"]), max_size=40))
def test_facts_are_those_of_the_words(found):
    from datatrove.utils.text import PUNCTUATION_SET

    facts = words.known(found)
    assert len(facts) == len(found) and facts.lengths_W.tolist() == [len(word) for word in found]
    assert facts.has_letter_W.tolist() == [any(map(str.isalpha, word)) for word in found]
    assert facts.has_text_W.tolist() == [not set(word) <= PUNCTUATION_SET for word in found]
    numbers = dict(zip(found, facts.numbers_W.tolist(), strict=True))
    assert [numbers[word] for word in found] == facts.numbers_W.tolist() and len(set(numbers.values())) == len(numbers)
    assert len(facts.without_marks()) == facts.has_text_W.sum()


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(words, "MOST_KNOWN", 10)
    for start in range(0, 100, 5):
        text = " ".join(f"word{start + place}" for place in range(5))
        assert len(np.unique(words.of(text).numbers_W)) == 5
        assert len(words._FACTS) <= 10 + 5


def test_japanese_words_are_as_many_as_sudachi_finds(real_text):
    """By 2 % in old and in new text, though each may be cut elsewhere."""
    from sudachipy import Dictionary, SplitMode

    sudachi = Dictionary(dict="small").tokenizer(mode=SplitMode.A)
    lines = (real_text / "instruction_ja.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    dialogues = "\n".join(turn["text"] for line in lines for turn in json.loads(line)["utterances"])
    for text in ((real_text / "soseki" / "bottyan.txt").read_text(encoding="utf-8")[:20_000], dialogues[:20_000]):
        theirs = [word.surface() for line in text.split("\n") for word in sudachi.tokenize(line)]
        theirs = [word for word in theirs if word.strip()]
        assert len(words.split(text)) == pytest.approx(len(theirs), rel=0.02)
