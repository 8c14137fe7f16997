"""The bands of an engine's memory and their blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.engine.row_sizes import BAND, CHUNK, bands, block_sizes


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("context, rows, parts", [(32, 4, 1), (256, 64, 8), (512, 32, 1), (513, 2, 1), (9000, 64, 4)])
def test_bands_hold_the_context_and_divide_among_devices(context, rows, parts, groups):
    sizes = bands(context, rows, parts, groups, slot_bytes=BAND)
    assert max(slots for _, slots in sizes) >= context > max(slots for _, slots in sizes) - CHUNK
    assert all(count % parts == 0 and slots % CHUNK == 0 for count, slots in sizes)
    assert all(count >= 2 for count, slots in sizes if slots == sizes[0][1] or not groups)
    lengths = list(dict.fromkeys(slots for _, slots in sizes))  # a band of each length before a second one
    assert lengths == sorted(lengths)
    assert rows <= sum(count for count, _ in sizes) <= rows + 4 * parts + 6
    first = [count for count, slots in sizes if slots == sizes[0][1]]
    if groups:
        assert (len(first) > 1) == (rows >= 4 * parts)
    else:  # bands of one size, so that texts of like length stand together, but none of very few rows
        assert len(first) == max(1, min(4, sum(first) // (8 * parts))) and max(first) - min(first) <= parts
        assert len(sizes) - len(first) == len(lengths) - 1


def test_a_small_model_has_one_band_of_each_size():
    """Each band makes the step longer to compile."""
    few = 32 * 512
    count = lambda slot_bytes: len(bands(512, 32, 1, False, slot_bytes))  # noqa: E731
    assert [count(n * BAND // few) for n in (0, 1, 2, 3, 4, 5)] == [1, 1, 2, 3, 4, 4]


def test_blocks_of_equal_size_up_to_the_short_rows():
    assert block_sizes(512) == [128, 128, 256] and block_sizes(512, equal=True) == [128] * 4
    assert block_sizes(384, equal=True) == [128] * 3 and block_sizes(1280, equal=True) == [128, 128, 128, 128, 512, 256]
    assert block_sizes(32, equal=True) == block_sizes(32) == [16, 16]


@given(st.integers(1, 300))
def test_a_row_has_two_blocks_or_more(chunks):
    """A softmax over one block would have other bits in a band of few rows."""
    for equal in (False, True):
        sizes = block_sizes(chunks * CHUNK, equal)
        assert sum(sizes) == chunks * CHUNK and len(sizes) >= 2 and min(sizes) > 0
