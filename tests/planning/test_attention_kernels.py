"""Attention's kernel by the compiler's schedule: laws that it obeys, and what its blocks cost."""

import dataclasses

import pytest

from tests.planning.test_estimate import setting
from tpullm.hardware.chips import CHIPS
from tpullm.model.attention.kernels import largest_block
from tpullm.planning.setting import Habits
from tpullm.planning.step_work import (
    MATMULS,
    TURN,
    UNIT,
    backward,
    forward,
    kernel_seconds,
    keys_per_query,
    table_block,
)

SCHEDULED = {name: chip.attention for name, chip in CHIPS.items() if chip.attention}


@pytest.mark.parametrize(("generation", "block"), [(name, block) for name in SCHEDULED for block in SCHEDULED[name]])
def test_no_kernel_is_faster_than_its_products(generation, block):
    """Not even without what its turns and rows of blocks cost besides."""
    chip, keys = CHIPS[generation], keys_per_query(8192, block)
    for kernel, products in MATMULS.items():
        of = chip.attention[block][kernel]
        turns = 8192 * (8192 if kernel == "all" else keys) / block**2
        besides = (turns * of.turn + 8192 / block * of.edge) / chip.clock / chip.cores + turns * TURN / chip.cores
        found = kernel_seconds(chip, kernel, block, (1, 8192, 8192), keys, UNIT) - besides
        assert found >= 2 * products * 8192 * keys * UNIT / chip.peak_flops * (1 - 1e-9)


def test_a_row_of_one_block_is_one_turn():
    chip = CHIPS["v6e"]
    of = chip.attention[1024]["forward"]
    expected = (of.body + of.turn + of.edge) / chip.clock + TURN
    keys = keys_per_query(1024, 1024)
    assert kernel_seconds(chip, "forward", 1024, (1, 1024, 1024), keys, UNIT) == pytest.approx(expected)


def test_turns_are_those_up_to_the_diagonal_and_of_all_gradients_every_one():
    """Of 4 x 4 blocks 10 are multiplied."""
    chip = CHIPS["v5p"]
    of = chip.attention[256]
    keys, every = (
        kernel_seconds(chip, name, 256, (1, 1024, 1024), keys_per_query(1024, 256), UNIT) * chip.cores
        for name in ("keys", "all")
    )
    a_turn = lambda name: of[name].turn / chip.clock + TURN  # noqa: E731
    body = lambda name: of[name].body / chip.clock  # noqa: E731
    edge = lambda name: of[name].edge / chip.clock  # noqa: E731
    assert keys == pytest.approx(10 * (body("keys") + a_turn("keys")) + 4 * edge("keys"))
    assert every == pytest.approx(10 * body("all") + 16 * a_turn("all") + 4 * edge("all"))


def test_windows_and_shared_rows_leave_less_to_do():
    found = [keys_per_query(8192, 1024, windows) for windows in ((), (1024,), (0, 1024))]
    assert found == [4608, 2048, 3328]
    whole, shared = setting("8b", "v6e:4x4", {"fsdp": 16}), setting("8b", "v6e:4x4", {"fsdp": 8, "sequence": 2})
    assert whole.tokens == shared.tokens  # rows are longer there, in parts
    assert forward(shared) == pytest.approx(forward(whole))
    assert backward(shared) > backward(whole)  # each of the devices begins every block of keys


def test_one_pass_would_be_faster_and_small_blocks_are_slower():
    base = setting("8b")
    fused = dataclasses.replace(base, habits=Habits(fused=True))
    assert 0.6 < backward(fused) / backward(base) < 0.8
    small = dataclasses.replace(base, attention_block=256)
    assert small.block == 256 and forward(small) > 2 * forward(base)


@pytest.mark.parametrize("generation", SCHEDULED)
def test_what_is_refused_is_what_is_not_in_the_table(generation):
    for kind in CHIPS[generation].device_kinds:
        assert largest_block(kind) == max(SCHEDULED[generation])
    assert largest_block("a chip of tomorrow") == 1024


def test_blocks_that_are_not_in_the_table():
    assert table_block(CHIPS["v5e"], 2048) == 1024
    assert table_block(CHIPS["v6e"], 2048) == 2048 and table_block(CHIPS["v6e"], 724) == 512
