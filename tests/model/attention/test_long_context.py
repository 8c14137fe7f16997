"""Rows that are split along `sequence`: the same numbers, in less memory, and evenly distributed work."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.eight_devices import printed, printed_alone
from tests.model.attention.test_triton import rows_of
from tpullm.model.attention import flash
from tpullm.model.rows import zigzag_order

SHARES = (0.53, 0.3, 0.12, 0.04)  # of the row; the rest is padding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "rows", "shape"), [(2048, 2, {"sequence": 4, "fsdp": 2}), (131_072, 1, {"sequence": 8})]
)
def test_a_device_of_several_needs_less_than_half_of_the_memory_of_one_alone(length, rows, shape):
    """A device has its own queries and their gradients, but keys, values and their gradients of a whole row."""
    one, several = printed_alone("tests.model.attention.long_context", str(length), str(rows), json.dumps(shape))
    assert one / 8 < several < one / 2


def key_blocks(order: np.ndarray, devices: int, positions: np.ndarray) -> list[int]:
    """How many blocks of keys each device attends to, if devices hold consecutive parts of this order."""
    length, blocks = len(order), []
    for indices in order.reshape(devices, -1):
        of_queries = lambda x: jnp.asarray(x.reshape(-1, 1, flash._block_size(length // devices)))  # noqa: E731
        nothing, whole = jnp.zeros((1, length), jnp.int32), jnp.asarray(2**30)
        total = 0
        for at, position in zip(of_queries(indices), of_queries(positions[indices]), strict=True):
            tokens = flash.Tokens(jnp.zeros_like(position), position, at[0], nothing, nothing, whole)
            first, end = flash._key_block_range(tokens, flash._block_size(length))
            total += int(end - first)
        blocks.append(total)
    return blocks


def test_devices_attend_to_equally_many_keys():
    """One document of 131,072 tokens on 8 devices, in zigzag order and in plain order."""
    length, devices = 131_072, 8
    alone = np.arange(length, dtype=np.int32)
    even, uneven = (key_blocks(order, devices, alone) for order in (zigzag_order(length, devices), alone))
    assert sum(even) == sum(uneven) == 256 * 257 // 2, "each pair of blocks up to the diagonal, once"
    assert len(set(even)) == 1 and max(uneven) > 1.8 * np.mean(uneven)
    # With several documents zigzag order is uneven too, but less: at most 3,032 and 3,600 blocks, with a mean of 1,624.
    packed = rows_of([[int(share * length) for share in SHARES]], length)[1][0]
    zigzagged, plain = (key_blocks(order, devices, packed) for order in (zigzag_order(length, devices), alone))
    assert sum(zigzagged) == sum(plain) and max(zigzagged) < 0.9 * max(plain)


@pytest.mark.ci
def test_every_kernel_on_rows_that_are_split_is_plain_attention():
    """Values and gradients, with a window, a soft cap and sinks. The kernels of a TPU and of a GPU are interpreted.

    Float32 sums over 1,024 keys in blocks of 16 to 128: some roundings of 6e-8.
    """
    found = printed("tests.model.attention.sharded_attention")
    assert len(found) == 6
    for name, differences in found.items():
        assert max(differences) < 4e-6, (name, differences)
