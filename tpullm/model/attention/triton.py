"""Self-attention on an NVIDIA GPU: FlashAttention-2 (Dao 2023) within documents, in Pallas (Triton).

A query attends to consecutive keys: from the first of its document, or of its window, to itself. Blocks without such a
pair are skipped. The backward pass recomputes the scores, in one pass over the blocks for the gradients of queries and
in another for those of keys and values.

Shapes: B rows and T queries of one device, in P pieces of their rows (one, or two in zigzag order), S keys of a whole
row, N query heads, K key/value heads, G = N / K, H head width, C queries and D keys of a block. A block has H rounded
up to a power of two, as Triton needs it, with zeros there.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import triton

from tpullm.model.attention.kernels import Block, triton_blocks
from tpullm.model.mesh import RULES, abstract_device
from tpullm.model.platform import target_platform
from tpullm.model.rows import all_gather_row, own_indices

LOWEST = -1e30
NARROWEST = 16  # width of a block that Triton multiplies

# Products in the type of the operands with float32 sums. In float32 a tensor core would round the operands to TF32.
_matmul = partial(triton.dot, allow_tf32=False)


class Visible(NamedTuple):
    """Which keys a query attends to: those from `first` to itself.

    `first_BT`: index in the row of the first key that each query attends to; `end_BS`: one more than the index of the
    last query that attends to each key; `pieces_P`: index of the first query of each piece. All int32.
    """

    first_BT: jax.Array
    end_BS: jax.Array
    pieces_P: jax.Array


class Form(NamedTuple):
    """What a kernel is compiled for: `softcap` of the scores (0 is none), `width` of a head, `block`, `per_piece`.

    A piece of a row has `per_piece` blocks of queries.
    """

    softcap: float
    width: int
    block: Block
    per_piece: int


def triton_attention(q_BTNH, k_BKTH, v_BKTH, positions_BT, window, softcap: float = 0.0, sinks_N=None) -> jax.Array:
    """The mixed values `[B, T, N, H]` of `plain.attend`, for queries and keys of the same tokens.

    A document begins where a position is 0. Padding has the position 0, so it attends to itself. With several devices
    along `sequence`, each all-gathers the keys and values of its rows.

    Args:
        window: how many tokens a token attends to, itself included; int32.
    """
    axis = RULES.time
    # Without a GPU (in tests) the kernels are interpreted.
    interpret = target_platform() == "cpu"
    blocks = triton_blocks(abstract_device().device_kind, q_BTNH.dtype, q_BTNH.shape[-1])

    def local(q_BTNH, k_BTKH, v_BTKH, positions_BT, window, sinks_N):
        k_BSKH, v_BSKH, positions_BS = (all_gather_row(x, axis, 1) for x in (k_BTKH, v_BTKH, positions_BT))
        S = positions_BS.shape[1]
        indices_T, indices_S = own_indices(S, axis), jnp.arange(S, dtype=jnp.int32)
        # A document ends where the next one begins.
        begins_BS = jnp.where(positions_BS == 0, indices_S, S)
        ends_BS = jax.lax.cummin(jnp.pad(begins_BS[:, 1:], ((0, 0), (0, 1)), constant_values=S), axis=1, reverse=True)
        visible = Visible(
            indices_T - jnp.minimum(positions_BT, window - 1),
            jnp.minimum(ends_BS, indices_S + jnp.minimum(window, S)),
            indices_T.reshape(1 if jax.lax.axis_size(axis) == 1 else 2, -1)[:, 0],
        )
        return _attention(softcap, blocks, interpret, q_BTNH, k_BSKH, v_BSKH, sinks_N, visible)

    spec = RULES.spec("batch", "time", "heads", "head")
    mapped = jax.shard_map(local, out_specs=spec, check_vma=False)
    return mapped(q_BTNH, k_BKTH.swapaxes(1, 2), v_BKTH.swapaxes(1, 2), positions_BT, window, sinks_N)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(softcap, blocks, interpret, q_BTNH, k_BSKH, v_BSKH, sinks_N, visible):
    return _forward(softcap, blocks, interpret, q_BTNH, k_BSKH, v_BSKH, sinks_N, visible)[0]


def _forward(softcap, blocks, interpret, q_BTNH, k_BSKH, v_BSKH, sinks_N, visible):
    B, T, N, _ = q_BTNH.shape
    form = _kernel_form(softcap, blocks.forward, q_BTNH, k_BSKH, visible)
    specs = _specs_by_queries(form, q_BTNH, k_BSKH)
    sink = None if sinks_N is None else pl.BlockSpec((None,), lambda i, b, n: (n,))
    mixed_BTNH, log_total_BNT = pl.pallas_call(
        partial(_forward_kernel, form),
        grid=(T // form.block.queries, B, N),
        in_specs=[_spec_of_pieces(visible.pieces_P), specs.first, specs.queries, specs.keys, specs.keys, sink],
        out_specs=[specs.queries, specs.numbers],
        out_shape=[jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype), jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        **_kernel_options("triton_attention", interpret),
    )(visible.pieces_P, visible.first_BT, q_BTNH, k_BSKH, v_BSKH, sinks_N)
    mixed_BTNH, log_total_BNT = (checkpoint_name(x, "attention") for x in (mixed_BTNH, log_total_BNT))
    return mixed_BTNH, (q_BTNH, k_BSKH, v_BSKH, sinks_N, visible, mixed_BTNH, log_total_BNT)


def _backward(softcap, blocks, interpret, saved, d_BTNH):
    q_BTNH, k_BSKH, v_BSKH, sinks_N, visible, mixed_BTNH, log_total_BNT = saved
    # Otherwise XLA turns those of all layers at once, for the sum below: 10 GiB of 70 billion parameters.
    mixed_BTNH = with_layout_constraint(mixed_BTNH, Layout((0, 1, 2, 3)))
    # The gradient of the softmax needs sum(weights * dweights), which is sum(mixed * dmixed) (Dao et al. 2022, B.2).
    inner_BNT = jnp.sum(d_BTNH.astype(jnp.float32) * mixed_BTNH.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    of_queries = (q_BTNH, d_BTNH, log_total_BNT, inner_BNT)
    (B, T, N, _), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    form = _kernel_form(softcap, blocks.dq, q_BTNH, k_BSKH, visible)
    specs = _specs_by_queries(form, q_BTNH, k_BSKH)
    dq_BTNH = pl.pallas_call(
        partial(_dq_kernel, form),
        grid=(T // form.block.queries, B, N),
        in_specs=[_spec_of_pieces(visible.pieces_P), specs.first, *specs.of_queries(), specs.keys, specs.keys],
        out_specs=specs.queries,
        out_shape=jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
        **_kernel_options("triton_attention_dq", interpret),
    )(visible.pieces_P, visible.first_BT, *of_queries, k_BSKH, v_BSKH)
    form = _kernel_form(softcap, blocks.dkv, q_BTNH, k_BSKH, visible)
    specs, end = _specs_by_keys(form, q_BTNH, k_BSKH), pl.BlockSpec((None, form.block.keys), lambda j, b, k: (b, j))
    dk_BSKH, dv_BSKH = pl.pallas_call(
        partial(_dkv_kernel, form),
        grid=(S // form.block.keys, B, K),
        in_specs=[_spec_of_pieces(visible.pieces_P), specs.first, end, *specs.of_queries(), specs.keys, specs.keys],
        out_specs=[specs.keys, specs.keys],
        out_shape=[jax.ShapeDtypeStruct(k_BSKH.shape, k_BSKH.dtype)] * 2,
        **_kernel_options("triton_attention_dkv", interpret),
    )(visible.pieces_P, visible.first_BT, visible.end_BS, *of_queries, k_BSKH, v_BSKH)
    dsinks_N = None
    if sinks_N is not None:  # the value of a sink is 0, so its gradient has the inner product alone
        dsinks_N = -jnp.sum(jnp.exp(sinks_N[:, None] - log_total_BNT) * inner_BNT, axis=(0, 2))
    return dq_BTNH, dk_BSKH, dv_BSKH, dsinks_N, None


_attention.defvjp(_forward, _backward)


class Specs(NamedTuple):
    """What one program of a grid sees: of `first_BT`, of `[B, T, N, H]`, of `[B, N, T]`, and of `[B, S, K, H]`."""

    first: pl.BlockSpec
    queries: pl.BlockSpec
    numbers: pl.BlockSpec
    keys: pl.BlockSpec

    def of_queries(self) -> list[pl.BlockSpec]:
        """Of the queries, the gradient of their mixed values, and two numbers for each."""
        return [self.queries, self.queries, self.numbers, self.numbers]


def _specs_by_queries(form: Form, q_BTNH, k_BSKH) -> Specs:
    """For a grid of blocks of queries, rows and query heads: the block, and the whole row of keys of its head."""
    C, H, S, G = form.block.queries, _padded_head_width(form.width), k_BSKH.shape[1], q_BTNH.shape[2] // k_BSKH.shape[2]
    return Specs(
        pl.BlockSpec((None, C), lambda i, b, n: (b, i)),
        pl.BlockSpec((None, C, None, H), lambda i, b, n: (b, i, n, 0)),
        pl.BlockSpec((None, None, C), lambda i, b, n: (b, n, i)),
        pl.BlockSpec((None, S, None, H), lambda i, b, n: (b, 0, n // G, 0)),
    )


def _specs_by_keys(form: Form, q_BTNH, k_BSKH) -> Specs:
    """For a grid of blocks of keys, rows and key heads: the block, and the whole row of queries of its G heads."""
    D, H, T, G = form.block.keys, _padded_head_width(form.width), q_BTNH.shape[1], q_BTNH.shape[2] // k_BSKH.shape[2]
    return Specs(
        pl.BlockSpec((None, T), lambda j, b, k: (b, 0)),
        pl.BlockSpec((None, T, G, H), lambda j, b, k: (b, 0, k, 0)),
        pl.BlockSpec((None, G, T), lambda j, b, k: (b, k, 0)),
        pl.BlockSpec((None, D, None, H), lambda j, b, k: (b, j, k, 0)),
    )


def _spec_of_pieces(x_P) -> pl.BlockSpec:
    return pl.BlockSpec(x_P.shape, lambda *_: (0,))


def _kernel_form(softcap, block: Block, q_BTNH, k_BSKH, visible: Visible) -> Form:
    piece = q_BTNH.shape[1] // len(visible.pieces_P)
    block = Block(math.gcd(block.queries, piece), math.gcd(block.keys, k_BSKH.shape[1]))
    return Form(softcap, q_BTNH.shape[-1], block, piece // block.queries)


def _kernel_options(name: str, interpret: bool) -> dict:
    return {"name": name, "compiler_params": triton.CompilerParams(num_warps=8, num_stages=2), "interpret": interpret}


def _padded_head_width(width: int) -> int:
    return max(NARROWEST, pl.next_power_of_2(width))


def _forward_kernel(form, pieces_ref, first_ref, q_ref, k_ref, v_ref, sink_ref, mixed_ref, log_total_ref):
    D = form.block.keys
    first_C, q_CH = first_ref[...], _load_head_block(form, q_ref)
    begin = _first_query(form, pieces_ref, pl.program_id(0))

    def add_keys(j, carry):
        most_C, total_C, mixed_CH = carry
        k_DH, v_DH = (_load_head_block(form, ref.at[pl.ds(j * D, D)]) for ref in (k_ref, v_ref))
        scores_CD, _ = _block_scores(form, q_CH, k_DH, first_C, begin, j * D)
        new_C = jnp.maximum(most_C, scores_CD.max(axis=-1))
        weights_CD, shrunk_C = _exp_by_powers_of_two(scores_CD - new_C[:, None]), _exp_by_powers_of_two(most_C - new_C)
        mixed_CH = mixed_CH * shrunk_C[:, None] + _matmul(weights_CD.astype(v_DH.dtype), v_DH)
        return new_C, total_C * shrunk_C + weights_CD.sum(axis=-1), mixed_CH

    start = (
        jnp.full(first_C.shape, LOWEST if sink_ref is None else sink_ref[...], jnp.float32),
        jnp.full(first_C.shape, 0 if sink_ref is None else 1, jnp.float32),
        jnp.zeros(q_CH.shape, jnp.float32),
    )
    most_C, total_C, mixed_CH = jax.lax.fori_loop(*_key_blocks(form, first_C, begin), add_keys, start)
    _store_head_block(form, mixed_ref, mixed_CH / total_C[:, None])
    log_total_ref[...] = most_C + jnp.log(total_C)


def _dq_kernel(form, pieces_ref, first_ref, q_ref, d_ref, log_total_ref, inner_ref, k_ref, v_ref, dq_ref):
    D = form.block.keys
    first_C, log_total_C, inner_C = first_ref[...], log_total_ref[...], inner_ref[...]
    q_CH, d_CH = _load_head_block(form, q_ref), _load_head_block(form, d_ref)
    begin = _first_query(form, pieces_ref, pl.program_id(0))

    def add_keys(j, dq_CH):
        k_DH, v_DH = (_load_head_block(form, ref.at[pl.ds(j * D, D)]) for ref in (k_ref, v_ref))
        scores_CD, slope_CD = _block_scores(form, q_CH, k_DH, first_C, begin, j * D)
        _, dscores_CD = _score_gradients(scores_CD, slope_CD, d_CH, v_DH, log_total_C, inner_C)
        return dq_CH + _matmul(dscores_CD.astype(k_DH.dtype), k_DH)

    start = jnp.zeros(q_CH.shape, jnp.float32)
    dq_CH = jax.lax.fori_loop(*_key_blocks(form, first_C, begin), add_keys, start)
    _store_head_block(form, dq_ref, dq_CH * form.width**-0.5)


def _dkv_kernel(
    form, pieces_ref, first_ref, end_ref, q_ref, d_ref, log_total_ref, inner_ref, k_ref, v_ref, dk_ref, dv_ref
):
    C, D = form.block.queries, form.block.keys
    k_begin, k_end = pl.program_id(0) * D, jnp.max(end_ref[...])
    k_DH, v_DH = _load_head_block(form, k_ref), _load_head_block(form, v_ref)

    def add_queries(g, i, carry):
        dk_DH, dv_DH = carry
        at = pl.ds(i * C, C)
        q_CH, d_CH = (_load_head_block(form, ref.at[at, g]) for ref in (q_ref, d_ref))
        begin = _first_query(form, pieces_ref, i)
        scores_CD, slope_CD = _block_scores(form, q_CH, k_DH, first_ref[at], begin, k_begin)
        of_total = log_total_ref[g, at], inner_ref[g, at]
        weights_CD, dscores_CD = _score_gradients(scores_CD, slope_CD, d_CH, v_DH, *of_total)
        dk_DH += _matmul(dscores_CD.astype(q_CH.dtype), q_CH, trans_a=True)
        return dk_DH, dv_DH + _matmul(weights_CD.astype(d_CH.dtype), d_CH, trans_a=True)

    def add_head(g, carry):
        for piece in range(pieces_ref.shape[0]):
            low, high = (jnp.clip(x - pieces_ref[piece], 0, form.per_piece * C) for x in (k_begin, k_end))
            blocks = piece * form.per_piece + jax.lax.div(low, C), piece * form.per_piece + pl.cdiv(high, C)
            carry = jax.lax.fori_loop(*blocks, partial(add_queries, g), carry)
        return carry

    start = jnp.zeros(k_DH.shape, jnp.float32), jnp.zeros(v_DH.shape, jnp.float32)
    dk_DH, dv_DH = jax.lax.fori_loop(0, q_ref.shape[1], add_head, start)
    _store_head_block(form, dk_ref, dk_DH * form.width**-0.5)
    _store_head_block(form, dv_ref, dv_DH)


def _first_query(form: Form, pieces_ref, i):
    """The index in the row of the first query of block `i`."""
    piece = jax.lax.div(i, form.per_piece)
    return pieces_ref[piece] + (i - piece * form.per_piece) * form.block.queries


def _key_blocks(form: Form, first_C, begin):
    """The range of blocks of keys that these queries attend to."""
    C, D = form.block.queries, form.block.keys
    return jax.lax.div(jnp.min(first_C), D), jax.lax.div(begin + C - 1, D) + 1


def _block_scores(form: Form, q_CH, k_DH, first_C, begin, k_begin):
    """The scores of one block, `LOWEST` where a query doesn't attend to a key, and the derivative of the soft cap."""
    C, D = q_CH.shape[0], k_DH.shape[0]
    scores_CD, slope_CD = _matmul(q_CH, k_DH, trans_b=True) * form.width**-0.5, 1.0
    if form.softcap:
        bounded_CD = jnp.tanh(scores_CD / form.softcap)
        scores_CD, slope_CD = form.softcap * bounded_CD, 1 - jnp.square(bounded_CD)
    index_C1, k_index_1D = begin + jnp.arange(C)[:, None], k_begin + jnp.arange(D)[None]
    allowed_CD = (k_index_1D >= first_C[:, None]) & (k_index_1D <= index_C1)
    return jnp.where(allowed_CD, scores_CD, LOWEST), slope_CD


def _score_gradients(scores_CD, slope_CD, d_CH, v_DH, log_total_C, inner_C):
    """The weights, and the gradients of the scores before the soft cap."""
    weights_CD = _exp_by_powers_of_two(scores_CD - log_total_C[:, None])
    return weights_CD, weights_CD * (_matmul(d_CH, v_DH, trans_b=True) - inner_C[:, None]) * slope_CD


def _exp_by_powers_of_two(x):
    """A GPU has an instruction for powers of two alone."""
    return jnp.exp2(x * math.log2(math.e))


def _load_head_block(form: Form, ref):
    """A block `[rows, H]`, with zeros beyond the width of a head."""
    mask_1H = _head_columns(form, ref)
    return triton.load(ref, mask=mask_1H, other=None if mask_1H is None else 0.0)


def _store_head_block(form: Form, ref, x_CH):
    triton.store(ref, x_CH.astype(ref.dtype), mask=_head_columns(form, ref))


def _head_columns(form: Form, ref):
    """Which columns of a block belong to the head; None is all."""
    H = ref.shape[-1]
    return None if H == form.width else jnp.arange(H)[None] < form.width
