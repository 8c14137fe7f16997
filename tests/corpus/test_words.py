"""Words: nothing of a text is lost, equal words have equal hashes, and Japanese ones are as many as Sudachi's."""

import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpullm.corpus.filters import words

CJK = "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\u3005-\u3007"
MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e30-\u0e4e"
SPACED = re.compile(rf"[\w{MARKS}](?:\S*[\w{MARKS}])?|\S")
SPACELESS = re.compile(
    r"[\u3041-\u309f]{1,2}|[\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f]+"
    r"|[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3005-\u3007\U00020000-\U000323af]{1,2}|[\u0e00-\u0e7f]{1,4}"
    rf"|[^\W{CJK}\u0e00-\u0e7f\U00020000-\U000323af]+|[^\w\s]"
)
# Letters, digits, marks and white space of each kind that is cut in its own way.
LETTERS = "aZé9½_'-.,#!。、…・猫々本〇𠀋のがーんカナｶゞภาิไह्ँ\u0301\u30fb\u200d😀\t\n\u3000\x1c\x85 "
TEXTS = st.one_of(
    st.text(st.sampled_from(LETTERS), max_size=80),
    st.text(st.sampled_from("ab'.- \n"), max_size=900),
    st.text(st.sampled_from("a猫の。 \n"), min_size=300, max_size=900),
)


@given(TEXTS)
@example("Don't (see example.org/a-b), please! हिन्दी भाषा। ภาษาไทย コンピューターはPython3.13で書く")
def test_words_are_those_of_a_pattern(text):
    """The patterns say what a word is: one for languages with spaces between words, one for those without."""
    for language, pattern in (("en", SPACED), ("und", SPACED), ("ja", SPACELESS), ("th", SPACELESS)):
        assert list(words.words_of(text, language)) == pattern.findall(text)


@given(TEXTS, st.sampled_from(["en", "ja"]))
def test_facts_are_those_of_the_words(text, language):
    from datatrove.utils.text import PUNCTUATION_SET

    facts = words.words_of(text, language)
    found = list(facts)
    assert len(facts) == len(found) and facts.lengths_W.tolist() == [len(word) for word in found]
    assert facts.has_letter_W.tolist() == [any(map(str.isalpha, word)) for word in found]
    assert facts.has_text_W.tolist() == [not set(word) <= PUNCTUATION_SET for word in found]
    assert facts.hashes_W.dtype == np.uint64 and facts.hashes_W.tolist() == list(map(words.hash_of_word, found))
    assert len(set(facts.hashes_W.tolist())) == len(set(found))


@given(st.sampled_from(["ab", "ba", "a" * 70, "a" * 71, "b" * 70, "x" * 4096 + "y", "y" + "x" * 4096]), st.data())
def test_a_hash_is_of_the_letters_and_their_order(word, data):
    other = data.draw(st.permutations(word[:8]).map("".join)) + word[8:]
    assert (words.hash_of_word(word) == words.hash_of_word(other)) == (word == other)


def test_japanese_words_are_as_many_as_sudachi_finds(real_text):
    """By 2 % in old and in new text, though each may be cut elsewhere."""
    from sudachipy import Dictionary, SplitMode

    sudachi = Dictionary(dict="small").tokenizer(mode=SplitMode.A)
    lines = (real_text / "instruction_ja.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    dialogues = "\n".join(turn["text"] for line in lines for turn in json.loads(line)["utterances"])
    for text in ((real_text / "soseki" / "bottyan.txt").read_text(encoding="utf-8")[:20_000], dialogues[:20_000]):
        theirs = [word.surface() for line in text.split("\n") for word in sudachi.tokenize(line)]
        theirs = [word for word in theirs if word.strip()]
        assert len(words.words_of(text, "ja")) == pytest.approx(len(theirs), rel=0.02)
