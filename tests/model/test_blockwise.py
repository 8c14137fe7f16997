"""Attention in blocks is plain attention: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import batch, mesh
from tpullm.model import blockwise
from tpullm.model.attention import allowed, attend
from tpullm.sharding import named


@pytest.mark.parametrize("block", [8, 16, 32])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Softmax and sums over up to 32 keys in another order: some roundings of 6e-8, or of 4e-3 in bfloat16.
    [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)],
)
def test_blocks_equal_plain_attention(monkeypatch, block, heads, groups, dtype, tolerance):
    """On rows of two documents and padding, with grouped heads."""
    monkeypatch.setattr(blockwise, "query_block", lambda length: block)
    b = batch(rows=3, length=32)
    keys = jax.random.split(jax.random.key(0), 4)
    widths = [heads, groups, groups, heads]
    q, k, v, cotangent = (
        jax.random.normal(key, (3, 32, n, 8)).astype(dtype) for key, n in zip(keys, widths, strict=True)
    )
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

    def both(attention):
        mask = allowed(b.segment_ids, b.positions, b.segment_ids, b.positions)
        # Where there is padding, nothing is asked: whom it looks at may differ.
        real = (b.segment_ids > 0)[:, :, None, None]
        mixed, back = jax.vjp(lambda q, k, v: attention(q, k, v, mask) * real, q, k, v)
        return mixed, *back(cotangent)

    with jax.set_mesh(mesh()):
        queries, everywhere = (
            named(mesh(), "batch", "time", "heads", "head"),
            named(mesh(), "batch", "kv_heads", None, "head"),
        )
        q, k, v, cotangent = jax.device_put((q, k, v, cotangent), (queries, everywhere, everywhere, queries))
        ours = jax.jit(lambda: both(blockwise.attend_in_blocks))()
        plain = jax.jit(lambda: both(lambda *arguments: attend(*arguments)[0]))()
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype == dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_a_real_length_is_cut_into_blocks():
    """On a CPU 256 tokens are two blocks and 2,048 are eight; what 128 does not divide is one."""
    assert [len(blockwise._blocks(length)) for length in (64, 256, 2048, 300)] == [1, 2, 8, 1]
