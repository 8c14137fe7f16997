"""Cutting loses nothing and keeps lines whole where it can."""

from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.characters import cut


@given(st.text(alphabet="ab 。\n本😀"), st.integers(1, 20))
def test_pieces_joined_are_the_text_and_none_is_too_long(text, length):
    pieces = cut(text, length)
    assert "".join(pieces) == text
    assert all(len(piece) <= length for piece in pieces)
    assert len(pieces) == 1 or all(pieces)


def test_a_text_is_cut_at_a_line_else_after_a_sentence():
    assert cut("今日は。\n雨です。\n明日は。\n", 7) == ["今日は。\n", "雨です。\n", "明日は。\n"]
    assert cut("今日は雨です。明日は", 9) == ["今日は雨です。", "明日は"]
    assert cut("ああああああ", 4) == ["ああああ", "ああ"]


def best(window):
    """Where a window is cut: its second half before its first, a line's end before a sentence's, the last of them."""
    middle = len(window) // 2
    for low, high in ((middle, len(window)), (0, middle)):
        lines = [place for place in range(low + 1, high + 1) if window[place - 1] == "\n"]
        sentences = [place for place in range(low + 1, high + 1) if window[place - 1] in "。．！？"]
        sentences += [place for place in range(low + 2, high + 1) if window[place - 2 : place] in (". ", "! ", "? ")]
        if lines or sentences:
            return max(lines or sentences)
    return len(window)


@given(st.text(alphabet="aab 。.\n", max_size=60), st.integers(1, 9))
def test_each_piece_is_cut_at_the_best_place(text, half):
    pieces, place = cut(text, 2 * half), 0
    for piece in pieces[:-1]:
        assert len(piece) == best(text[place : place + 2 * half])
        place += len(piece)
    assert len(pieces[-1]) <= 2 * half and len(pieces) == 1 + sum(len(piece) > 0 for piece in pieces[:-1])
