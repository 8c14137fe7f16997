"""Folding leaves the letters and digits of a text in one form, and cutting loses nothing."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.characters import END, cut, folded


def as_text(text):
    return "".join(map(chr, folded(text).tolist()))


def by_definition(text):
    """NFKC, lower case, letters and digits alone: of the whole text, without tables."""
    found = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(one for one in found if one.isalnum())


# What normalization joins, reorders or takes apart: marks, Hangul, half-width kana, ligatures, Greek sigma.
HARD = (
    "がガ\u3099\u309a\uff9e\uff9fｶﾊé\u0301\u0323e\u1100\u1161\u11a8가㍻㈱"
    "ﬁßİıΣςΌ½①Ａａ１ー・　 .\u0345\u0f71\u0f72क\u093cà\U00016d67"
)


@given(st.text() | st.text(st.sampled_from(HARD)))
def test_it_is_the_definition(text):
    assert as_text(text) == by_definition(text)


def test_every_character_is_folded_as_the_definition_says():
    points = [*range(0x3400), *range(0x3400, END, 97), *range(0xAC00, 0x10000, 5)]
    assert [point for point in points if as_text(chr(point)) != by_definition(chr(point))] == []


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


@given(st.text(alphabet="aab 。.\n本😀", max_size=60), st.integers(1, 9))
def test_each_piece_is_cut_at_the_best_place_and_none_is_lost(text, half):
    pieces, place = cut(text, 2 * half), 0
    assert "".join(pieces) == text and (len(pieces) == 1 or all(pieces)) and len(pieces[-1]) <= 2 * half
    for piece in pieces[:-1]:
        assert len(piece) == best(text[place : place + 2 * half])
        place += len(piece)
