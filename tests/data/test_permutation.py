"""A permutation has every place once, whatever its size and key, and all permutations are about as likely."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data.permutation import hashed, permuted


def whole(size, key):
    return permuted(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))


def places_of_all_keys(size, places, keys):
    """Where each of the keys 0, 1, ... takes the given places of `size`: int64 [keys, places]."""
    own = hashed(np.repeat(np.arange(keys), len(places)), 5)
    return permuted(np.tile(places, keys), np.full(len(own), size), own).reshape(keys, -1)


def chi_square(counts, outcomes):
    """Of counts that should be equal, in standard deviations from what chance gives on average."""
    expected = sum(counts) / outcomes
    found = sum((count - expected) ** 2 for count in counts) / expected + (outcomes - len(counts)) * expected
    return (found - (outcomes - 1)) / np.sqrt(2 * (outcomes - 1))


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_each_place_comes_once(size, key):
    assert np.array_equal(np.sort(whole(size, key)), np.arange(size))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**40), st.integers(0, 2**64 - 1), st.integers(0, 2**40)), max_size=9))
def test_a_place_does_not_depend_on_the_others_and_stays_below_its_size(asked):
    sizes, keys, places = (np.array([each[n] for each in asked], np.uint64) for n in range(3))
    sizes = sizes.astype(np.int64)
    places = places.astype(np.int64) % np.maximum(sizes, 1)
    found = permuted(places, sizes, keys)
    assert found.dtype == np.int64 and (found >= 0).all() and (found < sizes).all()
    for n in range(len(asked)):
        assert permuted(places[[n]], sizes[[n]], keys[[n]])[0] == found[n]


@pytest.mark.parametrize("size", [2, 3, 10, 64, 1000])
def test_a_place_goes_everywhere_as_often(size):
    for place in (0, size // 2, size - 1):
        found = places_of_all_keys(size, [place], 40 * size)
        assert abs(chi_square(np.bincount(found.ravel(), minlength=size), size)) < 5


@pytest.mark.parametrize("size", [5, 12, 40])
def test_two_places_go_to_all_pairs_of_places_as_often(size):
    outcomes = size * (size - 1)
    for pair in ((0, 1), (size // 2, size - 1)):
        found = places_of_all_keys(size, pair, 30 * outcomes)
        assert abs(chi_square(list(Counter(map(tuple, found.tolist())).values()), outcomes)) < 5


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_a_few_places_occur(size):
    found = Counter(map(tuple, places_of_all_keys(size, np.arange(size), 8000).tolist()))
    assert set(found) == set(itertools.permutations(range(size)))
    assert min(found.values()) > 0.3 * 8000 / len(found)


def test_neighbouring_places_and_keys_have_nothing_in_common():
    """Not more neighbours stay neighbours than by chance, and of two keys not more places agree: both Poisson of 1."""
    size = 1 << 20
    first, other = whole(size, 1), whole(size, 2)
    assert np.count_nonzero(first == other) < 8
    assert np.count_nonzero(np.diff(first) == 1) < 8
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / np.sqrt(size)


def reference_hash(first, *others):
    """A chain of SplitMix64 in Python's integers."""
    mixed, mask = first, 2**64 - 1
    for value in others:
        mixed = (mixed * 0x9E3779B97F4A7C15 + value) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
    return mixed


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**64))
def test_a_hash_is_a_chain_of_splitmix64(first, second, third):
    found = hashed(np.array([first]), np.array([second]), third)
    assert found.tolist() == [reference_hash(first, second, third % 2**64)]
