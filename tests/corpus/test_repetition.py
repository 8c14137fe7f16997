"""What repeats itself is found by Gopher's rules, as a loop over words counts them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus import language_detection, ngrams, repetition

TOP, DUPLICATE = {2: 0.20, 3: 0.18, 4: 0.16}, {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def top_characters(words, n):
    """Of the commonest n-gram that comes first."""
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    return {most * sum(map(len, gram)) for gram in counts if counts[gram] == most} if most > 1 else {0}


def repeated_characters(words, n):
    seen, covered = set(), set()
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            covered |= set(range(start, start + n))
        seen.add(gram)
    return sum(len(words[place]) for place in covered)


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=1, max_size=60)


@given(WORDS, st.integers(1, 12))
def test_n_grams_are_counted_as_words_are(words, n):
    codes, lengths = ngrams.units(" ".join(words))
    assert repetition.top_characters(codes, lengths, n) in top_characters(words, n)
    assert repetition.repeated_characters(codes, lengths, n) == repeated_characters(words, n)


def repeats(text, words, scale):
    """The rules by n-grams alone; None where the commonest n-gram is not one, so that any of them may be meant."""
    top = [{count > share * len(text) for count in top_characters(words, scale * n)} for n, share in TOP.items()]
    if any(repeated_characters(words, scale * n) > share * len(text) for n, share in DUPLICATE.items()):
        return True
    return None if {True, False} in top else {True} in top


@given(st.lists(st.integers(0, 40), min_size=90, max_size=130), st.integers(1, 41), st.booleans())
def test_a_page_is_judged_by_its_n_grams(numbers, different, japanese):
    """A Japanese word counts as two characters; a page of fewer than 100 words is not judged."""
    names = [number % different for number in numbers]
    text = "".join(f"{chr(0x3042 + name)}{chr(0x30A2 + name)}" for name in names) if japanese else ""
    text = text or " ".join(f"word{name}" for name in names)
    expected = repeats(text, list(text) if japanese else text.split(), 2 if japanese else 1)
    if expected is not None:
        assert repetition.is_repetitive(text) == (expected and len(numbers) >= 100)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["the same line"] * 4 + [f"another line {n}" for n in range(6)], False),  # 3 of 10 lines
        (["the same line"] * 5 + [f"another line {n}" for n in range(6)], True),  # 4 of 11
        (["x"] * 9 + [f"a long line that is there once, number {n}" for n in range(6)], False),  # of few characters
    ],
)
def test_a_page_is_judged_by_its_repeated_lines(lines, expected):
    """More than 30 % of the lines, with more than 20 % of the characters."""
    assert repetition.is_repetitive("\n".join(lines)) == expected
    assert repetition.is_repetitive("\n \n".join(lines)) == expected  # empty lines are none


@pytest.mark.parametrize(("bad", "good", "expected"), [(1, 1, False), (2, 1, True), (1, 2, False), (1, 0, True)])
def test_a_book_is_repetitive_if_most_of_its_pages_are(bad, good, expected):
    pages = ["the same words\n" * 1000] * bad + [" ".join(map(str, range(5000)))] * good
    text = "".join(page[:9999] + "\n" for page in pages)
    assert len(text) == 10_000 * (bad + good)
    assert repetition.is_repetitive(text) == expected


def test_counts_of_n_grams_agree_with_their_definition():
    words = "a b c a b c a b d".split()
    codes, lengths = ngrams.units(" ".join(words))
    assert repetition.top_characters(codes, lengths, 2) == 3 * len("ab")
    assert repetition.repeated_characters(codes, lengths, 2) == 5  # a b c a b, once more
    assert repetition.repeated_characters(codes, lengths, 6) == 0
    assert len(ngrams.hashes(codes, 99)) == 0 and repetition.top_characters(codes, lengths, 99) == 0
    assert len(np.unique(ngrams.hashes(codes, 3))) == len({tuple(words[i : i + 3]) for i in range(7)})


def test_books_are_not_repetitive():
    """The share of repeated n-grams grows with length: a whole novel must pass as its pages do."""
    folder = Path(os.environ.get("TPULLM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    books = [folder / "soseki" / "bottyan.txt", folder / "tinyshakespeare.txt"]
    if not all(book.exists() for book in books):
        pytest.skip("no test data: set TPULLM_TEST_DATA to its folder")
    for book, name in zip(books, ("ja", "en"), strict=True):
        text = book.read_text(encoding="utf-8")
        assert language_detection.is_language(text, name) and not repetition.is_repetitive(text)
