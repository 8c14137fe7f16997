"""Self-attention in plain JAX, in blocks: for long rows on any device, and for training on a CPU.

For long rows the scores of one block of queries and keys exist at a time. The softmax is computed online (Milakov &
Gimelshein 2018), and the backward pass recomputes the scores (FlashAttention, Dao et al. 2022; FlashAttention-2, Dao
2023). A block of queries attends to the keys from the start of its earliest document to its own last token, and skips
all others. A CPU uses it for long rows, other platforms where their own kernel does not apply.

For training on a CPU each block of queries attends to the keys up to the end of the block. The scores of a block stay
in the processor's cache, and the forward pass keeps only the weights, in the type of the matmuls. The backward pass is
written by hand: `jax.grad` would use float32 matmuls, since the scores are float32. Forward and backward of 16 x 256
tokens with 6 heads of 64 took 24 ms on two cores, and 50 ms with plain attention.

Shapes: B rows and T queries of one device, S keys of a whole row, N query heads, K key/value heads, G = N / K, H head
width, C queries and D keys of a block.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.model.attention.kernels import query_block
from tpullm.model.attention.plain import BRANCH, same_segment
from tpullm.model.linear import einsum
from tpullm.model.mesh import RULES
from tpullm.model.rows import all_gather_row, own_indices

QUERIES = RULES.spec("batch", "kv_heads", None, "time", "head")
KEYS = RULES.spec("batch", "kv_heads", None, "head")
SCORES = RULES.spec("batch", "kv_heads", None, "time", None)


@jax.custom_vjp
def attend_in_blocks(q_BTNH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    """The mixed values `[B, T, N, H]` of `plain.attend`, for queries and keys of the same tokens.

    Args:
        mask_BTT: whether each query attends to each key; never to a later token.
    """
    return _forward_blocks(q_BTNH, k_BKTH, v_BKTH, mask_BTT)[0]


def _forward_blocks(q_BTNH, k_BKTH, v_BKTH, mask_BTT):
    q_BKGTH = _heads_by_group(q_BTNH, k_BKTH.shape[1])
    scale = q_BTNH.shape[-1] ** -0.5
    weights, mixed = [], []
    for start, end in _query_blocks(q_BTNH.shape[1]):
        scores = _products(q_BKGTH[:, :, :, start:end], k_BKTH[:, :, :end]) * scale
        scores = jnp.where(mask_BTT[:, None, None, start:end, :end], scores, jnp.finfo(jnp.float32).min)
        weights.append(jax.nn.softmax(scores, axis=-1).astype(v_BKTH.dtype))
        mixed.append(einsum("bkgcs,bksh->bkgch", weights[-1], v_BKTH[:, :, :end], QUERIES))
    mixed_BTNH = _joined_heads(mixed)
    return mixed_BTNH, (q_BKGTH, k_BKTH, v_BKTH, weights, mixed_BTNH)


def _backward_blocks(saved, d_BTNH):
    q_BKGTH, k_BKTH, v_BKTH, weights, mixed_BTNH = saved
    dtype, scale = d_BTNH.dtype, d_BTNH.shape[-1] ** -0.5
    d_BKGTH = _heads_by_group(d_BTNH, k_BKTH.shape[1])
    # The gradient of the softmax needs sum(weights * dweights), which is sum(mixed * dmixed) (Dao et al. 2022, B.2).
    inner_BTN = jnp.sum(d_BTNH.astype(jnp.float32) * mixed_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    inner_BKGT1 = _heads_by_group(inner_BTN, k_BKTH.shape[1])
    dq, dk_BKTH, dv_BKTH = [], 0, 0
    for weights_BKGCS, (start, end) in zip(weights, _query_blocks(d_BTNH.shape[1]), strict=True):
        d_BKGCH, q_BKGCH = d_BKGTH[:, :, :, start:end], q_BKGTH[:, :, :, start:end]
        dweights = _products(d_BKGCH, v_BKTH[:, :, :end])
        dscores = weights_BKGCS.astype(jnp.float32) * (dweights - inner_BKGT1[:, :, :, start:end]) * scale
        dscores = dscores.astype(dtype)
        dq.append(einsum("bkgcs,bksh->bkgch", dscores, k_BKTH[:, :, :end], QUERIES))
        dk_BKTH += _sum_over_queries(dscores, q_BKGCH, d_BTNH.shape[1])
        dv_BKTH += _sum_over_queries(weights_BKGCS, d_BKGCH, d_BTNH.shape[1])
    return _joined_heads(dq), dk_BKTH.astype(dtype), dv_BKTH.astype(dtype), None


attend_in_blocks.defvjp(_forward_blocks, _backward_blocks)


_products = partial(jnp.einsum, "bkgch,bksh->bkgcs", out_sharding=SCORES, preferred_element_type=jnp.float32)


def _sum_over_queries(weights_BKGCS, values_BKGCH, length):
    """Of each key of a block, with zeros for the keys after it."""
    sums = partial(jnp.einsum, "bkgcs,bkgch->bksh", out_sharding=KEYS, preferred_element_type=jnp.float32)
    return jnp.pad(sums(weights_BKGCS, values_BKGCH), ((0, 0), (0, 0), (0, length - weights_BKGCS.shape[4]), (0, 0)))


def _query_blocks(length):
    block = query_block(length)
    return [(start, start + block) for start in range(0, length, block)]


def _heads_by_group(x_BTNH, groups):
    B, T, N, H = x_BTNH.shape
    grouped = RULES.spec("batch", "time", "kv_heads", None, "head")
    return jnp.reshape(x_BTNH, (B, T, groups, N // groups, H), out_sharding=grouped).transpose(0, 2, 3, 1, 4)


def _joined_heads(blocks):
    """Blocks of queries `[B, K, G, C, H]` as `[B, T, N, H]`."""
    x_BKGTH = jnp.concatenate(blocks, axis=3) if len(blocks) > 1 else blocks[0]
    B, K, G, T, H = x_BKGTH.shape
    whole = RULES.spec("batch", "time", "heads", "head")
    return jnp.reshape(x_BKGTH.transpose(0, 3, 1, 2, 4), (B, T, K * G, H), out_sharding=whole)


MOST = 512  # queries or keys in a block
LOWEST = -1e30


class Tokens(NamedTuple):
    """What decides which keys a query attends to.

    `segments`, `positions` `[B, T]`; `indices` `[T]`: of each query in its row; `k_segments`, `k_positions` `[B, S]`,
    in the order of the row; `window`: how many tokens a token attends to, itself included.
    """

    segments: jax.Array
    positions: jax.Array
    indices: jax.Array
    k_segments: jax.Array
    k_positions: jax.Array
    window: jax.Array


def flash(q_BTNH, k_BKTH, v_BKTH, segments_BT, positions_BT, window, softcap: float = 0.0, sinks_N=None) -> jax.Array:
    """The mixed values `[B, T, N, H]` of `plain.attend`, for queries and keys of the same tokens.

    With several devices along `sequence`, each all-gathers the keys and values of its rows.
    """
    axis = RULES.time

    def local(q_BTNH, k_BKTH, v_BKTH, segments_BT, positions_BT, window, sinks_N):
        k_BKSH, v_BKSH = (all_gather_row(x, axis, 2) for x in (k_BKTH, v_BKTH))
        k_segments_BS, k_positions_BS = (all_gather_row(x, axis, 1) for x in (segments_BT, positions_BT))
        indices = own_indices(k_BKSH.shape[2], axis)
        tokens = Tokens(segments_BT, positions_BT, indices, k_segments_BS, k_positions_BS, window)
        return _flash(softcap, q_BTNH, k_BKSH, v_BKSH, sinks_N, tokens)

    spec = RULES.spec("batch", "time", "heads", "head")
    mapped = jax.shard_map(local, out_specs=spec, check_vma=False)
    return mapped(q_BTNH, k_BKTH, v_BKTH, segments_BT, positions_BT, window, sinks_N)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(softcap, q_BTNH, k_BKSH, v_BKSH, sinks_N, tokens):
    return _forward(softcap, q_BTNH, k_BKSH, v_BKSH, sinks_N, tokens)[0]


def _forward(softcap, q_BTNH, k_BKSH, v_BKSH, sinks_N, tokens):
    B, T, N, H = q_BTNH.shape
    K, block = k_BKSH.shape[1], _block_size(k_BKSH.shape[2])
    sinks_KG1 = None if sinks_N is None else sinks_N.reshape(K, N // K, 1)

    def of_queries(_, queries):
        q_BKGCH, tokens_BC = queries[0], tokens._replace(**queries[1])

        def add_keys(j, carry):
            most_BKGC, total_BKGC, mixed_BKGCH = carry
            k_BKDH, v_BKDH = _block_of_keys(k_BKSH, j, block), _block_of_keys(v_BKSH, j, block)
            scores_BKGCD, allowed_BCD = _block_scores(q_BKGCH, k_BKDH, tokens_BC, j, softcap)
            scores_BKGCD = jnp.where(allowed_BCD[:, None, None], scores_BKGCD, LOWEST)
            new_BKGC = jnp.maximum(most_BKGC, scores_BKGCD.max(axis=-1))
            weights_BKGCD = jnp.exp(scores_BKGCD - new_BKGC[..., None])
            shrunk_BKGC = jnp.exp(most_BKGC - new_BKGC)
            added = _matmul("bkgcd,bkdh->bkgch", weights_BKGCD.astype(v_BKDH.dtype), v_BKDH)
            total_BKGC = total_BKGC * shrunk_BKGC + weights_BKGCD.sum(axis=-1)
            return new_BKGC, total_BKGC, mixed_BKGCH * shrunk_BKGC[..., None] + added

        shape = q_BKGCH.shape
        start = (
            jnp.full(shape[:-1], LOWEST if sinks_KG1 is None else sinks_KG1, jnp.float32),
            jnp.full(shape[:-1], 0 if sinks_KG1 is None else 1, jnp.float32),
            jnp.zeros(shape, jnp.float32),
        )
        most_BKGC, total_BKGC, mixed_BKGCH = jax.lax.fori_loop(*_key_block_range(tokens_BC, block), add_keys, start)
        mixed_BKGCH = (mixed_BKGCH / total_BKGC[..., None]).astype(q_BTNH.dtype)
        return None, (mixed_BKGCH, most_BKGC + jnp.log(total_BKGC))

    _, (mixed, log_total) = jax.lax.scan(of_queries, None, (_queries_by_block(q_BTNH, K), _tokens_by_block(tokens, T)))
    mixed_BTNH = _blocks_to_queries(mixed)
    return mixed_BTNH, (q_BTNH, k_BKSH, v_BKSH, sinks_N, tokens, mixed_BTNH, log_total)


def _backward(softcap, saved, d_BTNH):
    q_BTNH, k_BKSH, v_BKSH, sinks_N, tokens, mixed_BTNH, log_total = saved
    B, T, N, H = q_BTNH.shape
    K, block, dtype = k_BKSH.shape[1], _block_size(k_BKSH.shape[2]), q_BTNH.dtype
    # The gradient of the softmax needs sum(weights * dweights), which is sum(mixed * dmixed) (Dao et al. 2022, B.2).
    inner_BTN1 = jnp.sum(d_BTNH.astype(jnp.float32) * mixed_BTNH.astype(jnp.float32), axis=-1, keepdims=True)

    def of_queries(carry, queries):
        q_BKGCH, d_BKGCH, inner_BKGC1, log_total_BKGC = queries[0]
        tokens_BC = tokens._replace(**queries[1])

        def add_keys(j, carry):
            dq_BKGCH, dk_BKSH, dv_BKSH = carry
            k_BKDH, v_BKDH = _block_of_keys(k_BKSH, j, block), _block_of_keys(v_BKSH, j, block)
            scores_BKGCD, allowed_BCD = _block_scores(q_BKGCH, k_BKDH, tokens_BC, j, softcap)
            weights_BKGCD = jnp.exp(scores_BKGCD - log_total_BKGC[..., None])
            weights_BKGCD = jnp.where(allowed_BCD[:, None, None], weights_BKGCD, 0)
            dscores_BKGCD = weights_BKGCD * (_matmul("bkgch,bkdh->bkgcd", d_BKGCH, v_BKDH) - inner_BKGC1)
            if softcap:
                dscores_BKGCD *= 1 - jnp.square(scores_BKGCD / softcap)
            dscores_BKGCD = (dscores_BKGCD * H**-0.5).astype(dtype)
            dv_BKDH = _matmul("bkgcd,bkgch->bkdh", weights_BKGCD.astype(dtype), d_BKGCH)
            dk_BKDH = _matmul("bkgcd,bkgch->bkdh", dscores_BKGCD, q_BKGCH)
            dq_BKGCH += _matmul("bkgcd,bkdh->bkgch", dscores_BKGCD, k_BKDH)
            dk_BKSH, dv_BKSH = _add_to_block(dk_BKSH, dk_BKDH, j, block), _add_to_block(dv_BKSH, dv_BKDH, j, block)
            return dq_BKGCH, dk_BKSH, dv_BKSH

        start = (jnp.zeros(q_BKGCH.shape, jnp.float32), *carry)
        dq_BKGCH, *carry = jax.lax.fori_loop(*_key_block_range(tokens_BC, block), add_keys, start)
        return tuple(carry), dq_BKGCH.astype(dtype)

    blocks = (_queries_by_block(q_BTNH, K), _queries_by_block(d_BTNH, K), _queries_by_block(inner_BTN1, K))
    start = (jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32))
    (dk, dv), dq = jax.lax.scan(of_queries, start, ((*blocks, log_total), _tokens_by_block(tokens, T)))
    dsinks_N = None
    if sinks_N is not None:  # the value of a sink is 0, so its gradient has the inner product alone
        share_BKG = jnp.exp(sinks_N.reshape(K, N // K, 1) - log_total) * blocks[2][..., 0]
        dsinks_N = -jnp.sum(share_BKG, axis=(0, 1, 4)).reshape(N)
    return _blocks_to_queries(dq), dk.astype(dtype), dv.astype(dtype), dsinks_N, None


_flash.defvjp(_forward, _backward)


def _block_scores(q_BKGCH, k_BKDH, tokens: Tokens, j, softcap):
    """The scores of one block of keys, and which of them the mask allows."""
    D = k_BKDH.shape[2]
    scores_BKGCD = _matmul("bkgch,bkdh->bkgcd", q_BKGCH, k_BKDH) * q_BKGCH.shape[-1] ** -0.5
    scores_BKGCD = softcap * jnp.tanh(scores_BKGCD / softcap) if softcap else scores_BKGCD
    of_keys = tokens.k_segments, tokens.k_positions
    k_segments_BD, k_positions_BD = (jax.lax.dynamic_slice_in_dim(x, j * D, D, axis=1) for x in of_keys)
    back_BCD = tokens.positions[:, :, None] - k_positions_BD[:, None]
    allowed_BCD = same_segment(tokens.segments[:, :, None], k_segments_BD[:, None]) & (back_BCD >= 0)
    return scores_BKGCD, allowed_BCD & (back_BCD < tokens.window)


def _key_block_range(tokens: Tokens, block: int) -> tuple[jax.Array, jax.Array]:
    """The range of blocks of keys that these queries attend to: the first, and the one after the last.

    Padding attends to padding, from where its positions begin or from itself. Between a second answer and its prompt
    stands the first one, so it may need the row from its beginning.
    """
    back_BC = jnp.minimum(tokens.positions, tokens.window - 1)
    back_BC = jnp.where(tokens.segments >= BRANCH, tokens.indices, back_BC)
    return jnp.min(tokens.indices - back_BC) // block, jnp.max(tokens.indices) // block + 1


_matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _block_of_keys(x_BKSH, j, block):
    return jax.lax.dynamic_slice_in_dim(x_BKSH, j * block, block, axis=2)


def _add_to_block(x_BKSH, part_BKDH, j, block):
    return jax.lax.dynamic_update_slice_in_dim(x_BKSH, _block_of_keys(x_BKSH, j, block) + part_BKDH, j * block, axis=2)


def _block_size(length: int) -> int:
    return next(size for size in range(min(MOST, length), 0, -1) if length % size == 0)


def _queries_by_block(x_BTNH, groups: int):
    """`[B, T, N, H]` as `[blocks, B, K, G, C, H]`."""
    B, T, N, H = x_BTNH.shape
    C = _block_size(T)
    return x_BTNH.reshape(B, T // C, C, groups, N // groups, H).transpose(1, 0, 3, 4, 2, 5)


def _blocks_to_queries(x):
    """`[blocks, B, K, G, C, H]` as `[B, T, N, H]`."""
    blocks, B, K, G, C, H = x.shape
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(B, blocks * C, K * G, H)


def _tokens_by_block(tokens: Tokens, length: int) -> dict[str, jax.Array]:
    """The fields of `Tokens` of the queries, by block."""
    C = _block_size(length)
    by_row = lambda x_BT: x_BT.reshape(x_BT.shape[0], length // C, C).swapaxes(0, 1)  # noqa: E731
    segments, positions = by_row(tokens.segments), by_row(tokens.positions)
    return {"segments": segments, "positions": positions, "indices": tokens.indices.reshape(-1, C)}
