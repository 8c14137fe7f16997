"""The groups of the cache, their blocks, and the steps that compute them."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.engine.cache import (
    CHUNK,
    FEW,
    GROUP_BYTES,
    Cache,
    cache_group_sizes,
    row_block_sizes,
    split_group_steps,
    whole_group_steps,
)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("context, rows, parts", [(32, 4, 1), (256, 64, 8), (512, 32, 1), (513, 2, 1), (9000, 64, 4)])
def test_groups_hold_the_context_and_divide_among_devices(context, rows, parts, split):
    sizes = cache_group_sizes(context, rows, parts, split, slot_bytes=GROUP_BYTES)
    assert max(slots for _, slots in sizes) >= context > max(slots for _, slots in sizes) - CHUNK
    assert all(count % parts == 0 and slots % CHUNK == 0 for count, slots in sizes)
    assert all(count >= 2 for count, slots in sizes if slots == sizes[0][1] or not split)
    lengths = list(dict.fromkeys(slots for _, slots in sizes))  # a group of each length before a second one
    assert lengths == sorted(lengths)
    assert rows <= sum(count for count, _ in sizes) <= rows + 4 * parts + 6
    first = [count for count, slots in sizes if slots == sizes[0][1]]
    if split:
        assert (len(first) > 1) == (rows >= 4 * parts)
    else:  # groups of one size, so that texts of like length stand together, but none of very few rows
        assert len(first) == max(1, min(4, sum(first) // (8 * parts))) and max(first) - min(first) <= parts
        assert len(sizes) - len(first) == len(lengths) - 1


def test_a_small_model_has_one_group_of_each_size():
    """Each group makes the step longer to compile."""
    few = 32 * 512
    count = lambda slot_bytes: len(cache_group_sizes(512, 32, 1, False, slot_bytes))  # noqa: E731
    assert [count(n * GROUP_BYTES // few) for n in (0, 1, 2, 3, 4, 5)] == [1, 1, 2, 3, 4, 4]


def test_blocks_of_equal_size_up_to_the_short_rows():
    assert row_block_sizes(512) == [128, 128, 256] and row_block_sizes(512, equal=True) == [128] * 4
    assert row_block_sizes(384, equal=True) == [128] * 3
    assert row_block_sizes(1280, equal=True) == [*[128] * 4, 512, 256]
    assert row_block_sizes(32, equal=True) == row_block_sizes(32) == [16, 16]


@given(st.integers(1, 300), st.booleans())
def test_a_row_has_two_blocks_or_more(chunks, equal):
    """A softmax over one block would have other bits in a group of few rows."""
    sizes = row_block_sizes(chunks * CHUNK, equal)
    assert sum(sizes) == chunks * CHUNK and len(sizes) >= 2 and min(sizes) > 0


def cheapest(sizes, steps, *longest):
    """The step that an engine takes for texts of these lengths in each group."""
    enough = [step for step in steps if all(seen >= length for seen, length in zip(step, longest, strict=True))]
    return min(enough, key=lambda step: sum(rows * seen for (rows, _), seen in zip(sizes, step, strict=True)))


def test_where_all_rows_are_computed_the_first_groups_alone_attend_to_all_slots():
    few, whole = FEW, FEW + CHUNK
    steps = whole_group_steps([(8, whole)] * 4, [few, whole])
    assert steps == [(few,) * 4, (whole, whole, few, few), (whole,) * 4]
    sizes = [(8, 512)] * 4 + [(2, 2048)]
    steps = whole_group_steps(sizes, [256, 384, 512, 1024, 2048])
    assert cheapest(sizes, steps, 300, 3, 3, 3, 0) == (384, 384, few, few, 0)
    assert cheapest(sizes, steps, 385, 3, 3, 300, 0) == (512,) * 4 + (0,)
    assert cheapest(sizes, steps, 0, 3, 3, 3, 700) == (few,) * 4 + (2048,)


def test_several_long_texts_need_no_step_of_the_longest():
    """With a context of 4,352, nine texts of 600 tokens had steps that attend to all slots of all rows."""
    sizes = [(2, 512), (10, 512), (1, 2048), (1, 4352), (7, 2048), (1, 4352)]
    step_of = lambda *longest: cheapest(sizes, split_group_steps(sizes), *longest)  # noqa: E731
    assert step_of(100, 300, 600, 0, 700, 0) == (512, 512, 1024, 0, 1024, 0)
    assert step_of(100, 300, 600, 0, 1500, 0) == (512, 512, 2048, 0, 2048, 0)
    assert step_of(100, 300, 600, 3000, 0, 0) == (512, 512, 2048, 4352, 0, 0)
    assert step_of(100, 300, 600, 3000, 700, 0) == (512, 512, 2048, 4352, 2048, 4352)
    assert step_of(3, 0, 0, 0, 0, 0) == (FEW, 0, 0, 0, 0, 0)


def test_the_bytes_are_those_of_the_arrays_and_a_block_is_made_when_it_is_used(session):
    cache = Cache(session, [(2, 512), (1, 640)])
    with jax.set_mesh(session.mesh):
        cache.copy((0, 1), (1, 0), 100)
        assert set(cache.used) == {(0, 0), (1, 0)}
        cache.copy((0, 0), (0, 1), 512)
        cache.copy((1, 0), (1, 0), 640)
    assert sum(array.nbytes for array in jax.tree.leaves(cache.used)) == cache.bytes()
