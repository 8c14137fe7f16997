"""What is dropped, and the reason that is counted."""

import os
from pathlib import Path

import numpy as np
import pytest

from tpullm.corpus import filters, language_detection, ngrams, repetition
from tpullm.recipe.schema import CorpusConfig

PROSE = "今日はいい天気ですね。私はリンゴを食べるのが好きです。毎日学校で本を読みます。昨日は雨でした。"
CONFIG = CorpusConfig(minimum_characters=20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n\t", "empty"),
        ("本\0本", "broken encoding"),
        ("本\ud800", "broken encoding"),
        ("caf\ufffd", "broken encoding"),
        ("今日は".encode().decode("latin-1"), "broken encoding"),
        ("今日は", ""),
        ("a\tb\n", ""),
    ],
)
def test_unreadable(text, reason):
    assert filters.unreadable(text) == reason


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("短い", "ja", "too short"),
        (PROSE, "ja", ""),
        (PROSE, "en", "wrong language"),
        (PROSE, "", ""),
        (PROSE * 5, "ja", "too repetitive"),
        ("the same words " * 60, "en", "too repetitive"),
        ("def f(x):\n    return x + 1  # one\n", "code", ""),
        ("0x00, 0x01, 0x02, 0x03,\n" * 5, "code", "generated code or data"),
        ("var x = 'aaaa';" * 100, "code", "generated code or data"),
    ],
)
def test_unwanted(text, name, reason):
    assert filters.unwanted(text, name, CONFIG) == reason


def test_repeated_lines_are_repetitive():
    lines = [f"{number} makes a line that is unlike each other one here" for number in range(20)]
    assert not repetition.is_repetitive("\n".join(lines[:4]))
    assert repetition.is_repetitive("\n".join(lines[:4] * 3))


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
