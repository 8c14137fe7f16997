"""Self-attention for training on a CPU: in blocks of queries, each against the keys up to the end of the block.

Blocks above the diagonal are not computed, the scores of a block stay in the processor's cache, and the forward pass
keeps only the weights, in the type of the matmuls. The backward pass is written by hand: `jax.grad` would use float32
matmuls, since the scores are float32. Forward and backward of 16 x 256 tokens with 6 heads of 64 took 24 ms on two
cores, and 50 ms with plain attention.

Shapes: B batch, T length, N query heads, K key/value heads, G = N / K, H head width, C queries and S keys of a block.
"""

from functools import partial

import jax
import jax.numpy as jnp

from tpullm.mesh.layout import RULES
from tpullm.model.attention.kernels import query_block
from tpullm.model.linear import einsum

QUERIES = RULES.spec("batch", "kv_heads", None, "time", "head")
KEYS = RULES.spec("batch", "kv_heads", None, "head")
SCORES = RULES.spec("batch", "kv_heads", None, "time", None)


@jax.custom_vjp
def attend_in_blocks(q_BTNH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    """The mixed values `[B, T, N, H]` of `plain.attend`, for queries and keys of the same tokens.

    Args:
        mask_BTT: whether each query attends to each key; never to a later token.
    """
    return _forward(q_BTNH, k_BKTH, v_BKTH, mask_BTT)[0]


def _forward(q_BTNH, k_BKTH, v_BKTH, mask_BTT):
    q_BKGTH = _by_group(q_BTNH, k_BKTH.shape[1])
    scale = q_BTNH.shape[-1] ** -0.5
    weights, mixed = [], []
    for start, end in _blocks(q_BTNH.shape[1]):
        score = partial(jnp.einsum, "bkgch,bksh->bkgcs", out_sharding=SCORES, preferred_element_type=jnp.float32)
        scores = score(q_BKGTH[:, :, :, start:end], k_BKTH[:, :, :end]) * scale
        scores = jnp.where(mask_BTT[:, None, None, start:end, :end], scores, jnp.finfo(jnp.float32).min)
        weights.append(jax.nn.softmax(scores, axis=-1).astype(v_BKTH.dtype))
        mixed.append(einsum("bkgcs,bksh->bkgch", weights[-1], v_BKTH[:, :, :end], QUERIES))
    mixed_BTNH = _by_head(_joined(mixed))
    return mixed_BTNH, (q_BKGTH, k_BKTH, v_BKTH, weights, mixed_BTNH)


def _backward(saved, d_BTNH):
    q_BKGTH, k_BKTH, v_BKTH, weights, mixed_BTNH = saved
    dtype, scale = d_BTNH.dtype, d_BTNH.shape[-1] ** -0.5
    d_BKGTH = _by_group(d_BTNH, k_BKTH.shape[1])
    # The gradient of the softmax needs sum(weights * dweights), which is sum(mixed * dmixed) (Dao et al. 2022, B.2).
    inner_BTN = jnp.sum(d_BTNH.astype(jnp.float32) * mixed_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    inner_BKGT1 = _by_group(inner_BTN, k_BKTH.shape[1])
    dq, dk_BKTH, dv_BKTH = [], 0, 0
    for weights_BKGCS, (start, end) in zip(weights, _blocks(d_BTNH.shape[1]), strict=True):
        d_BKGCH, q_BKGCH = d_BKGTH[:, :, :, start:end], q_BKGTH[:, :, :, start:end]
        dweights = jnp.einsum(
            "bkgch,bksh->bkgcs", d_BKGCH, v_BKTH[:, :, :end], out_sharding=SCORES, preferred_element_type=jnp.float32
        )
        dscores = weights_BKGCS.astype(jnp.float32) * (dweights - inner_BKGT1[:, :, :, start:end]) * scale
        dscores = dscores.astype(dtype)
        dq.append(einsum("bkgcs,bksh->bkgch", dscores, k_BKTH[:, :, :end], QUERIES))
        dk_BKTH += _padded(_to_keys(dscores, q_BKGCH), d_BTNH.shape[1])
        dv_BKTH += _padded(_to_keys(weights_BKGCS, d_BKGCH), d_BTNH.shape[1])
    return _by_head(_joined(dq)), dk_BKTH.astype(dtype), dv_BKTH.astype(dtype), None


attend_in_blocks.defvjp(_forward, _backward)


def _to_keys(weights_BKGCS, values_BKGCH):
    return jnp.einsum(
        "bkgcs,bkgch->bksh", weights_BKGCS, values_BKGCH, out_sharding=KEYS, preferred_element_type=jnp.float32
    )


def _padded(x_BKSH, length):
    return jnp.pad(x_BKSH, ((0, 0), (0, 0), (0, length - x_BKSH.shape[2]), (0, 0)))


def _blocks(length):
    block = query_block(length)
    return [(start, start + block) for start in range(0, length, block)]


def _joined(blocks):
    return jnp.concatenate(blocks, axis=3) if len(blocks) > 1 else blocks[0]


def _by_group(x_BTNH, groups):
    B, T, N, H = x_BTNH.shape
    x_BTKGH = jnp.reshape(
        x_BTNH, (B, T, groups, N // groups, H), out_sharding=RULES.spec("batch", "time", "kv_heads", None, "head")
    )
    return x_BTKGH.transpose(0, 2, 3, 1, 4)


def _by_head(x_BKGTH):
    B, K, G, T, H = x_BKGTH.shape
    whole = RULES.spec("batch", "time", "heads", "head")
    return jnp.reshape(x_BKGTH.transpose(0, 3, 1, 2, 4), (B, T, K * G, H), out_sharding=whole)
