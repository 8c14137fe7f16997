"""What a round writes in slices is what the next round reads, and ranges of keys are even and leave none out."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus import document_files

KEYS = st.lists(st.integers(0, 2**64 - 1), max_size=30).map(lambda keys: np.array(sorted(keys), np.uint64))


@given(KEYS, st.integers(0, 5), st.integers(1, 3))
def test_a_slice_has_the_keys_of_its_range(tmp_path_factory, keys, power, width):
    path, ranges = tmp_path_factory.mktemp("ranges") / "a.bin", 1 << power
    rows = np.stack([keys + np.uint64(column) for column in range(width)], axis=1)
    with mock.patch("tpullm.system.storage.atomic._sync"):  # most of the time, and nothing is lost here
        document_files.write(path, document_files.bounds(keys, ranges), rows)
    found = [document_files.read_range(path, number, width) for number in range(ranges)]
    assert np.array_equal(np.concatenate(found), rows)
    for number, own in enumerate(found):
        assert all(int(key) * ranges >> 64 == number for key in own[:, 0])


@pytest.mark.parametrize(("rows", "ranges"), [(0, 1), (9, 1), (10, 2), (19, 2), (20, 4), (1000, 128)])
def test_ranges_are_a_power_of_two_and_keep_each_below_its_bound(rows, ranges):
    assert document_files.count(rows, 10) == ranges
