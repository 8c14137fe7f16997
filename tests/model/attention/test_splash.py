"""The tables of a TPU's kernel: those that JAX makes of its own masks, block by block."""

import jax
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from tpullm.model.attention import splash
from tpullm.model.rows import zigzag_order

LENGTH = 2048


def tables(monkeypatch, mask, window, sequence):
    with monkeypatch.context() as patched:
        patched.setattr(splash, "_Mask", mask)
        kernel = splash._splash_kernel(LENGTH, window, 2, sequence, 128, 0.0)
    infos = kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info
    return [leaf for info in infos for leaf in jax.tree.leaves(info._replace(q_sequence=None))]


@pytest.mark.parametrize("sequence", [1, 4])
@pytest.mark.parametrize("window", [0, 1, 128, 300, LENGTH])
def test_the_tables_are_those_of_jaxs_masks(monkeypatch, window, sequence):
    def theirs(length, window):
        shape = (length, length)
        return masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)

    ours, expected = (tables(monkeypatch, mask, window, sequence) for mask in (splash._Mask, theirs))
    assert len(ours) == len(expected) == 6
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_block_that_is_seen_whole_or_not_at_all_is_one_number():
    """Else 131,072 tokens took minutes: JAX computes each pair."""
    mask, block = splash._Mask(LENGTH, 0), [slice(256 * n, 256 * n + 256) for n in range(8)]
    assert mask[block[5], block[2]].tolist() == [[True]] and mask[block[2], block[5]].tolist() == [[False]]
    assert mask[block[3], block[3]] is mask[block[6], block[6]] and mask[block[3], block[3]].sum() == 256 * 257 // 2
    mask.q_sequence = zigzag_order(LENGTH, 4).astype(np.int32)
    assert mask[slice(0, 512), slice(0, 512)].shape == (512, 512), "of two turns"
