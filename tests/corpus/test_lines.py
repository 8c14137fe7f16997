"""The lines of a document are known by their letters, each once, with all of their characters."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus import dedup
from tpullm.recipe.schema import CorpusConfig, Source

LINES = ["All rights reserved by Example Inc.", "all RIGHTS reserved 2019, by example inc", "short", "", "１２３" * 9]
LINES += [
    "これは多くの文書にある行です。",
    "七文字の行です",
    "六文字の行だ",
    "exactly twenty letters",
    "only nineteen lette",
]


def key(text):
    (found,) = dedup.of(text)["key"]
    return found


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_each_line_is_there_once_with_its_characters(texts):
    """By the letters of ASCII, without a hash."""
    counts = Counter()
    for text in texts:
        letters = "".join(letter for letter in text.lower() if ord(letter) > 127 or letter.isalpha())
        counts[letters] += len(text) if len(letters.encode()) >= 20 else 0
    expected = {key(letters): count for letters, count in counts.items() if count}
    found = dedup.of("\n".join(texts))
    assert dict(zip(found["key"].tolist(), found["characters"].tolist(), strict=True)) == expected
    assert np.all(found["key"][1:] > found["key"][:-1])


def test_lines_of_few_letters_are_left_out():
    assert len(dedup.of("七文字の行です")) == 1 and len(dedup.of("六文字の行だ")) == 0
    assert len(dedup.of("abcdefghijklmnopqrst")) == 1 and len(dedup.of("abcdefghijklmnopqrs")) == 0
    assert len(dedup.of("| 12,345 | 67,890 | 11.5 % | 12,345 | 67,890 |")) == 0


def test_case_spaces_numbers_and_marks_do_not_count():
    assert key("Copyright 2019  Example Incorporated.") == key("copyright, 2024 example incorporated ")
    assert key("Copyright 2019 Example Incorporated") != key("Copyright 2019 Another Incorporated")


@pytest.mark.parametrize(
    ("most", "settings", "kept"),
    [(0, {}, False), (1, {}, True), (9, {}, True), (9, {"filter": False}, False), (9, {"deduplicate": False}, False)],
)
def test_lines_are_kept_where_documents_are_judged_and_compared(most, settings, kept):
    source = Source("s", "text", licence="CC0-1.0", **settings)
    assert dedup.are_kept(source, CorpusConfig(repeated_lines=most)) is kept
