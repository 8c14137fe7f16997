"""Every prediction is in an epoch once, rows are full, and other pieces stand side by side in every epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_permutation import reference_hash
from tpullm.data import packing
from tpullm.data.batch import Lengths

LENGTHS = st.lists(st.integers(0, 60), max_size=80)


def all_segments(packed, epoch):
    rows = np.arange(packed.rows)
    return packed.segments(rows, np.full_like(rows, epoch))


def packed_documents(tokens, *arguments, **options):
    return packing.pack(Lengths.of(tokens), *arguments, **options)


def in_groups(tokens):
    """The same lengths sorted, in groups of equal ones, with a gap between the numbers of groups."""
    found = sorted(Counter(tokens).items())
    counts = np.array([count for _, count in found], np.int64)
    firsts = np.cumsum(counts) - counts + 3 * np.arange(len(found))
    return Lengths(np.array([length for length, _ in found], np.int64), firsts, counts)


def pieces_of(packed, epoch):
    """Of each row its pieces: (document, start, length)."""
    found, segments = [[] for _ in range(packed.rows)], all_segments(packed, epoch)
    for *piece, row in zip(segments.documents, segments.starts, segments.lengths, segments.rows, strict=True):
        found[row].append(tuple(map(int, piece)))
    return found


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans(), st.data())
def test_every_prediction_is_in_an_epoch_once_and_documents_that_fit_are_whole(
    tokens, sequence_length, seed, epoch, grouped, moving, data
):
    """Of all documents, or of some groups of them, as those in one language are."""
    lengths = in_groups(tokens) if grouped else Lengths.of(tokens)
    chosen = (
        data.draw(st.sets(st.integers(0, len(lengths.tokens) - 1))) if tokens and data.draw(st.booleans()) else None
    )
    lengths = lengths if chosen is None else lengths.only(np.array(sorted(chosen), np.int64))
    packed = packing.pack(lengths, sequence_length, seed, moving)
    segments = all_segments(packed, epoch)
    pieces = zip(segments.documents, segments.starts, segments.lengths, strict=True)
    found = [(document, start + place) for document, start, length in pieces for place in range(length)]
    of_documents = {
        first + n: length
        for length, first, count in zip(lengths.tokens, lengths.firsts, lengths.counts, strict=True)
        for n in range(count)
    }
    assert lengths.documents == len(of_documents)
    assert sorted(of_documents.values()) == sorted(tokens) or chosen is not None
    expected = [(document, start) for document, length in of_documents.items() for start in range(length - 1)]
    assert sorted(found) == expected and lengths.total == len(expected)
    filled = np.bincount(segments.rows, segments.lengths, minlength=packed.rows)
    assert packed.rows == 0 or (filled.min() > 0 and filled.max() <= sequence_length)
    assert np.isclose(packed.fill * packed.rows * sequence_length, filled.sum())
    assert (np.diff(segments.rows) >= 0).all()
    for document, length in of_documents.items():
        if 2 <= length <= sequence_length + 1:
            mine = segments.documents == document
            assert segments.starts[mine].tolist() == [0]
            assert segments.lengths[mine].tolist() == [length - 1]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 20), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9)), max_size=9))
def test_a_row_does_not_depend_on_those_that_are_read_with_it(tokens, sequence_length, asked):
    packed = packed_documents(tokens, sequence_length, 0)
    asked = np.array([(row % packed.rows, epoch) for row, epoch in asked if packed.rows], np.int64).reshape(-1, 2)
    segments = packed.segments(*asked.T)
    for n, (row, epoch) in enumerate(asked.tolist()):
        mine = segments.rows == n
        found = [array[mine].tolist() for array in (segments.documents, segments.starts, segments.lengths)]
        assert list(zip(*found, strict=True)) == pieces_of(packed, epoch)[row]


def test_unmoved_cuts_begin_at_the_beginning_and_all_epochs_are_alike():
    packed = packed_documents([131, *range(5, 40)], 64, 0, moving=False)
    assert sorted(start for row in pieces_of(packed, 5) for document, start, _ in row if document == 0) == [0, 64, 128]
    assert pieces_of(packed, 5) == pieces_of(packed, 0)


def companions(packed, epoch):
    """Pairs of documents that share a row."""
    rows = [[document for document, _, _ in row] for row in pieces_of(packed, epoch)]
    return {(one, other) for row in rows for one in row for other in row if one < other}


@pytest.mark.parametrize(
    ("tokens", "sequence_length"),
    [(np.full(100, 11), 50), (2 + np.arange(300) % 60, 128), (np.random.default_rng(0).permutation(300) + 200, 1000)],
    ids=["one length", "some of each length", "one of each length"],
)
def test_in_each_epoch_and_with_each_seed_others_share_a_row(tokens, sequence_length):
    of_epochs = [companions(packed_documents(tokens, sequence_length, 0), epoch) for epoch in range(3)]
    assert of_epochs[0] == companions(packed_documents(tokens, sequence_length, 0), 0)
    for other in (of_epochs[1], of_epochs[2], companions(packed_documents(tokens, sequence_length, 1), 0)):
        assert len(of_epochs[0] & other) < 0.5 * len(of_epochs[0])


@pytest.mark.parametrize("documents, sequence_length", [(300, 256), (300, 2048), (1000, 8192)])
def test_rows_of_a_small_corpus_are_others_in_the_next_epoch_and_with_another_seed(documents, sequence_length):
    """Lengths as those of web pages, hardly two of them equal: 0.6 to 0.9 of the pairs stayed with one packing."""
    tokens = np.random.default_rng(0).lognormal(6, 1, documents).astype(int) + 2
    packed, again, other = (packed_documents(tokens, sequence_length, seed) for seed in (0, 0, 1))
    of_epochs = [companions(packed, epoch) for epoch in range(4)]
    assert of_epochs == [companions(again, epoch) for epoch in range(4)]
    for one, two in [*zip(of_epochs, of_epochs[1:], strict=False), (of_epochs[1], companions(other, 1))]:
        assert len(one & two) < 0.2 * len(one)


def test_a_large_corpus_has_one_packing_and_so_have_epochs_that_are_alike():
    tokens = 2 + np.random.default_rng(0).integers(0, 2000, packing.PIECES + 1)
    assert packed_documents(tokens, 4096, 0).packings == 1 < packed_documents(tokens[:2000], 4096, 0).packings
    assert packed_documents(tokens[:2000], 4096, 0, moving=False).packings == 1


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(0, 9),
    st.sampled_from(packing.SHARES),
    st.sampled_from([0, 0, 3, 60]),
)
def test_rows_at_random_are_as_many_as_asked_and_hold_each_piece_once(pieces, seed, share, more):
    histogram = np.bincount(pieces, minlength=41)
    rows = min(len(pieces), more + sum(count for count, _ in packing._best_fit(histogram, 40)))
    chances = np.random.default_rng(seed).integers(0, 2**64, histogram[:40].sum(), np.uint64)
    if kinds := packing._at_random(histogram, 40, rows, chances, share):
        assert sum(count for count, _ in kinds) == rows
        assert all(0 < sum(length * copies for length, copies in contents) <= 40 for _, contents in kinds)
        found = Counter()
        for count, contents in kinds:
            found.update({length: copies * count for length, copies in contents})
        assert found == Counter(pieces)


def test_in_many_epochs_a_document_stands_beside_every_other_one_about_as_often():
    packed, met = packed_documents(np.full(60, 11), 20, 0), Counter()  # two in a row
    for epoch in range(590):
        met.update(companions(packed, epoch))
    counts = np.array(list(met.values()))
    assert len(counts) == 60 * 59 // 2 and counts.sum() == 590 * 30
    assert ((counts - 10) ** 2 / 10).sum() / len(counts) < 1.3  # 1 by chance


@pytest.mark.parametrize(
    ("lengths", "sequence_length", "least"),
    [
        (np.random.default_rng(0).poisson(50, 20_000) + 2, 1024, 0.985),
        (np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int) + 2, 256, 0.999),
        (np.random.default_rng(0).lognormal(6.4, 1, 3_000).astype(int) + 2, 8192, 0.99),
        (np.array([200_000, 150_000]), 256, 0.999),
    ],
    ids=["short documents", "of all lengths", "few of each length", "novels"],
)
def test_rows_are_full(lengths, sequence_length, least):
    assert packed_documents(lengths, sequence_length, 0).fill >= least


def test_best_fit_leaves_no_two_rows_that_would_fit_in_one():
    lengths = np.random.default_rng(0).integers(2, 40, 500)
    filled = sorted(sum(length for _, _, length in row) for row in pieces_of(packed_documents(lengths, 100, 0), 0))
    assert filled[0] + filled[1] > 100


@settings(deadline=None)
@given(st.integers(42, 300), st.integers(-(2**63), 2**64), st.integers(0, 9), st.integers(0, 3))
def test_the_grid_of_a_long_document_begins_at_the_hash_of_document_epoch_and_seed(length, seed, epoch, before):
    packed = packed_documents([5] * before + [length], 40, seed)
    shift = reference_hash(before, reference_hash(epoch, seed % 2**64)) % (length - 1)
    starts = {start for row in pieces_of(packed, epoch) for document, start, _ in row if document == before}
    grid = {(shift + place) % (length - 1) for place in range(0, length - 1, 40)}
    assert starts - grid <= {0} and grid <= starts


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 100)), max_size=60))
def test_neighbouring_lengths_count_as_the_longest_of_them(pairs):
    histogram = np.zeros(1001, np.int64)
    for length, count in pairs:
        histogram[length] += count
    found, lengths = packing._with_neighbours(histogram), np.flatnonzero(histogram)
    assert found.sum() == histogram.sum()
    longest = np.flatnonzero(found)
    counted_as = longest[np.searchsorted(longest, lengths)]  # the next longer one
    assert (lengths >= 0.99 * counted_as).all()
    for end in longest:
        own = lengths[counted_as == end]
        assert end in own and histogram[own].sum() == found[end]
        assert histogram[own[1:]].sum() < packing.ENOUGH, "the shortest of them made it enough"


def test_a_billion_documents_are_packed_as_a_thousand_are():
    """What is computed is by lengths: each row, and where the last pieces are."""
    lengths = Lengths(np.array([41, 101, 3001]), np.array([0, 10**9, 3 * 10**9]), np.array([10**9, 2 * 10**9, 10**8]))
    packed = packing.pack(lengths, 1000, 0)
    assert packed.rows == 4 * 10**7 + 2 * 10**8 + 3 * 10**8 and packed.fill == 1
    segments = packed.segments(np.arange(packed.rows - 4, packed.rows), np.full(4, 7))
    predictions = np.bincount(segments.rows, segments.lengths)
    assert (predictions == 1000).all() and segments.documents.max() < 31 * 10**8


def test_a_length_of_one_percent_less_is_a_neighbour():
    histogram = np.zeros(1001, np.int64)
    histogram[[1000, 990, 989]] = 1
    assert np.flatnonzero(packing._with_neighbours(histogram)).tolist() == [989, 1000]
