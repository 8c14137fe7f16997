import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data import packing

LENGTHS = st.lists(st.integers(0, 60), max_size=80).map(lambda values: np.array(values, np.int64))


def all_segments(packed, epoch):
    rows = np.arange(packed.rows)
    return packed.segments(rows, np.full_like(rows, epoch))


@settings(deadline=None)
@given(lengths=LENGTHS, sequence_length=st.integers(1, 20), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_prediction_is_in_an_epoch_once_and_documents_that_fit_are_whole(lengths, sequence_length, seed, epoch):
    packed = packing.pack(lengths, sequence_length, seed)
    segments = all_segments(packed, epoch)
    pieces = zip(segments.documents, segments.starts, segments.lengths, strict=True)
    found = [(document, start + place) for document, start, length in pieces for place in range(length)]
    expected = [(document, start) for document, length in enumerate(lengths) for start in range(length - 1)]
    assert sorted(found) == expected
    filled = np.bincount(segments.rows, segments.lengths, minlength=packed.rows)
    assert packed.rows == 0 or (filled.min() > 0 and filled.max() <= sequence_length)
    assert np.isclose(packed.fill * packed.rows * sequence_length, filled.sum())
    for document in np.flatnonzero((lengths >= 2) & (lengths <= sequence_length + 1)):
        mine = segments.documents == document
        assert segments.starts[mine].tolist() == [0]
        assert segments.lengths[mine].tolist() == [lengths[document] - 1]


def test_unmoved_cuts_begin_at_the_beginning():
    segments = all_segments(packing.pack(np.array([131]), 64, 0, moving=False), 5)
    assert sorted(segments.starts.tolist()) == [0, 64, 128]


def test_the_seed_decides_which_documents_share_a_row():
    lengths = np.full(100, 11)
    first, again, other = (packing.pack(lengths, 50, seed).documents.tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("lengths", "sequence_length", "least"),
    [
        (np.random.default_rng(0).poisson(50, 20_000) + 2, 1024, 0.985),
        (np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int) + 2, 256, 0.999),
        (np.array([200_000, 150_000]), 256, 0.999),
    ],
    ids=["short documents", "of all lengths", "novels"],
)
def test_rows_are_full(lengths, sequence_length, least):
    assert packing.pack(lengths, sequence_length, 0).fill >= least


def test_best_fit_leaves_no_two_rows_that_would_fit_in_one():
    lengths = np.random.default_rng(0).integers(2, 40, 500)
    packed = packing.pack(lengths, 100, 0)
    filled = np.sort(np.add.reduceat(packed.lengths, packed.row_starts[:-1]))
    assert filled[0] + filled[1] > 100


def reference_hash(*values):
    """A chain of SplitMix64 in Python's integers."""
    mixed, mask = values[0], 2**64 - 1
    for value in values[1:]:
        mixed = (mixed * 0x9E3779B97F4A7C15 + value) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
    return mixed


@settings(deadline=None)
@given(st.integers(42, 300), st.integers(-(2**63), 2**64), st.integers(0, 9), st.integers(0, 3))
def test_the_grid_of_a_long_document_begins_at_the_hash_of_document_epoch_and_seed(length, seed, epoch, before):
    packed = dataclasses.replace(packing.pack(np.array([5] * before + [length]), 40, 0), seed=seed)
    shift = reference_hash(before, epoch, seed % 2**64) % (length - 1)
    segments = all_segments(packed, epoch)
    starts = set(segments.starts[segments.documents == before].tolist())
    grid = {(shift + place) % (length - 1) for place in range(0, length - 1, 40)}
    assert starts - grid <= {0} and grid <= starts


def test_the_pieces_are_kept_in_32_bits_where_that_is_enough():
    packed = packing.pack(np.array([100, 5]), 16, 0)
    assert {array.dtype for array in (packed.documents, packed.offsets, packed.lengths)} == {np.dtype(np.int32)}
    for largest, dtype in ((2**31 - 1, np.int32), (2**31, np.int64)):
        compact = packing._in_fewest_bytes(np.array([largest]))
        assert compact.dtype == dtype and compact.tolist() == [largest]
