"""Cutting loses nothing and keeps lines whole where it can."""

from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.cutting import cut


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
