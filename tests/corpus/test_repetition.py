"""What repeats itself is found by Gopher's rules, as a loop over words counts them."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus import language_detection
from tpullm.corpus.dedup import splitmix64
from tpullm.corpus.filters import gopher, quality, words


def repeated_characters(found, n):
    """After an n-gram that repeats the next begins behind it."""
    seen, count, place = set(), 0, 0
    while place <= len(found) - n:
        gram = tuple(found[place : place + n])
        count += sum(map(len, gram)) if gram in seen else 0
        place += n if gram in seen else 1
        seen.add(gram)
    return count


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=1, max_size=60)


@given(WORDS, st.integers(1, 12))
def test_repeated_n_grams_are_counted_as_a_loop_counts_them(found, n):
    facts = words.of(" ".join(found))
    count = gopher.repeated_characters(splitmix64(facts.hashes_W), facts.lengths_W, n)
    assert count == repeated_characters(found, n)


def repeats(text, found):
    """The rules by n-grams alone."""
    limit = gopher.ENGLISH
    for n, share in limit.top:
        counts = Counter(" ".join(found[start : start + n]) for start in range(len(found) - n + 1))
        gram, count = counts.most_common(1)[0]
        if len(gram) * count > share * len(text):
            return True
    return any(repeated_characters(found, n) > share * len(text) for n, share in limit.repeated)


@given(st.lists(st.integers(0, 40), min_size=90, max_size=130), st.integers(1, 41), st.booleans())
def test_a_page_is_judged_by_its_n_grams(numbers, different, marked):
    """Marks are no words; a page of fewer than 100 words is not judged."""
    found = [f"word{number % different}" for number in numbers]
    text = (" , " if marked else " ").join(found)
    assert quality.is_repetitive(text) == (repeats(text, found) and len(found) >= 100)


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
    assert quality.is_repetitive("\n".join(lines)) == expected
    assert quality.is_repetitive("\n \n".join(lines)) == expected  # empty lines are none


@pytest.mark.parametrize(("bad", "good", "expected"), [(1, 1, False), (2, 1, True), (1, 2, False), (1, 0, True)])
def test_a_book_is_repetitive_if_most_of_its_pages_are(bad, good, expected):
    pages = ["the same words\n" * 1000] * bad + [" ".join(map(str, range(5000)))] * good
    text = "".join(page[:9999] + "\n" for page in pages)
    assert len(text) == 10_000 * (bad + good)
    assert quality.is_repetitive(text) == expected


@pytest.mark.parametrize(("sentence", "expected"), [("毎日学校で本を読みます。", True), ("", False)])
def test_a_japanese_sentence_again_and_again_is_repetitive(sentence, expected):
    text = "".join(chr(0x4E00 + 7 * place) + "は" + chr(0x3042 + place % 80) + "と" for place in range(200))
    assert quality.is_repetitive(text + sentence * 30) == expected


def test_books_are_not_repetitive():
    """The share of repeated n-grams grows with length: a whole novel must pass as its pages do."""
    folder = Path(os.environ.get("TPULLM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    books = [folder / "soseki" / "bottyan.txt", folder / "tinyshakespeare.txt"]
    if not all(book.exists() for book in books):
        pytest.skip("no test data: set TPULLM_TEST_DATA to its folder")
    for book, name in zip(books, ("ja", "en"), strict=True):
        text = book.read_text(encoding="utf-8")
        assert language_detection.is_language(text, name) and not quality.is_repetitive(text)
