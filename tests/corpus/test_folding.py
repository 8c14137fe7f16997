"""Folding leaves the letters and digits of a text in one form, whatever way the text takes through the code."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus import characters
from tpullm.corpus.characters import folded, normal


def as_text(text):
    return "".join(map(chr, folded(text).tolist()))


def by_definition(text):
    """NFKC, lower case, letters and digits alone: of the whole text, without tables."""
    found = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(one for one in found if one.isalnum())


@given(st.text())
def test_it_is_the_definition(text):
    assert as_text(text) == by_definition(text)


# What normalization joins, reorders or takes apart: marks, Hangul, half-width kana, ligatures, Greek sigma.
HARD = (
    "がガ\u3099\u309a\uff9e\uff9fｶﾊé\u0301\u0323e\u1100\u1161\u11a8가㍻㈱"
    "ﬁßİıΣςΌ½①Ａａ１ー・　 .\u0345\u0f71\u0f72क\u093cà\U00016d67"
)


@given(st.text(st.sampled_from(HARD)))
def test_characters_that_join_each_other_are_folded_together(text):
    assert as_text(text) == by_definition(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Ｔｏ　ｂｅ, or NOT\nto be!", "tobeornottobe"),
        ("ﾃﾞｰﾀは１２３個（約５０％）。", "データは123個約50"),
        ("か\u3099くせい", "がくせい"),
        ("、。 \n…―", ""),
        ("", ""),
    ],
)
def test_width_case_white_space_and_punctuation_are_gone(text, left):
    assert as_text(text) == left


def test_every_character_that_is_folded_alone():
    table = dict(enumerate(characters._table().tolist()))
    alone = {
        point: found for point, found in table.items() if found != characters._SLOW and not 0xD800 <= point < 0xE000
    }
    wrong = [point for point, found in alone.items() if by_definition(chr(point)) != (chr(found) if found else "")]
    assert wrong == []
    assert len(table) - len(alone) < 3000 + 0x800, "the slow way is for few"


def test_normal_keeps_what_stands_between_words():
    assert normal("Ａ b。") == "a b。"
