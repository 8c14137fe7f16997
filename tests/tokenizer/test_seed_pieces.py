"""The pieces that the trainer may choose are parts of words and chunks, each with how often it occurs."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.tokenizer.trained import SPACE
from tpullm.tokenizer.trainer import seed_pieces


def parts_of(chunks):
    """Every part of 2 to 16 characters, counted, as the trainer is given those that occur twice."""
    counts = Counter(
        chunk[start:end]
        for chunk in chunks
        for start in range(len(chunk))
        for end in range(start + 2, min(len(chunk), start + 16) + 1)
    )
    return {piece.replace(" ", SPACE): count for piece, count in counts.items() if count > 1}


def test_chunks_are_words_with_the_space_before_them_single_digits_symbols_and_white_space():
    line = "the  cat, the cat: 1999 (the dog)\t\tthe  cat"
    chunks = ["the", "  ", "cat", ",", " the", " cat", ":", " ", *"1999", " (", "the", " dog", ")", "\t\t"]
    chunks += ["the", "  ", "cat"]
    found = seed_pieces([("en", line)])
    assert dict(found) == {piece: count for piece, count in parts_of(chunks).items() if "\t" not in piece}


@given(st.lists(st.text(st.sampled_from("ab c"), max_size=40), max_size=6))
def test_pieces_come_with_the_most_text_first(lines):
    found = seed_pieces([("en", line) for line in lines])
    assert found == sorted(found, key=lambda item: (-item[1] * len(item[0]), item[0]))
    assert len(dict(found)) == len(found) and all(count > 1 for _, count in found)


def test_no_piece_holds_a_tab_or_more_characters_than_sentencepiece_takes():
    assert seed_pieces([("en", "\t\t\t a\t\t\t")] * 9) == []
    assert max(len(piece) for piece, _ in seed_pieces([("en", "abcdefghijklmnopqrstuvwxyz" * 3)])) == 16


@pytest.mark.parametrize(
    ("language", "line", "words"),
    [
        ("ja", "東京都東京都", ["東京", "都", "東京", "都"]),
        ("zh", "東京都東京都", ["東京都東京都"]),  # Han characters alone may be Chinese
        ("en", "東京都へ東京都へ", ["東京", "都", "へ", "東京", "都", "へ"]),  # kana are Japanese, whatever is said
        ("ja", "the cat the cat", ["the", " cat", " the", " cat"]),
        ("ja", "猫はthe catとthe cat", ["猫", "は", "the", " cat", "と", "the", " cat"]),
    ],
)
def test_japanese_is_cut_at_its_words(language, line, words):
    assert dict(seed_pieces([(language, line)])) == parts_of(words)
