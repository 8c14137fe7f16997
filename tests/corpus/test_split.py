"""Held-out text is chosen by hash: not by position, not by what else is there."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpullm.corpus import held_out as split
from tpullm.corpus.characters import cut
from tpullm.corpus.dedup import text_hash


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("place", [0, 1, 2**62 - 1, 2**62, 2**63, 2**64 - 2])
def test_a_document_is_held_out_whose_first_64_bits_are_below_the_fraction(place, fraction):
    assert (place < split.held_out_bound(fraction)) == (Fraction(place, 2**64) < Fraction(fraction))
    assert split.held_out_bound(1.0) == 2**64 - 1  # a number of 8 bytes


TEXTS = st.lists(st.text(alphabet="ab。\n本", min_size=1, max_size=900), min_size=1, max_size=4)


@given(TEXTS, st.sampled_from([0.02, 0.1, 0.3, 0.6]), st.integers(50, 400))
@example(["短い文です。"], 0.02, 400)
def test_stretches_are_held_out_by_hash_and_the_rest_is_joined(texts, fraction, longest):
    length = max(int(sum(map(len, texts)) * fraction), 200)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in cut(text, length)]
    count = min(max(round(fraction * len(pieces)), 1), len(pieces) - 1)
    by_hash = sorted(range(len(pieces)), key=lambda index: (text_hash(pieces[index][1]), index))
    apart, runs = set(by_hash[:count]), []
    for index, (number, piece) in enumerate(pieces):
        if index not in apart:
            goes_on = runs and index - 1 not in apart and pieces[index - 1][0] == number
            runs = [*runs[:-1], (number, runs[-1][1] + piece)] if goes_on else [*runs, (number, piece)]
    training, held_out = split.held_out_stretches(texts, fraction, longest)
    assert held_out == [pieces[index] for index in sorted(apart)]
    assert training == [(number, text) for number, run in runs for text in cut(run, longest)]
