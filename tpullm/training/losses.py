"""Losses as weighted sums that add up over micro-batches: cross-entropy, and the balance loss of experts.

A step differentiates the sum of a loss, adds up the sums of its micro-batches and divides by the whole weight, so its
gradient does not depend on how the batch is cut. Every objective returns a dict of `Sum`, `loss` among them.

Cross-entropy never holds logits `[B, T, V]`. It goes over chunks of tokens, and computes the gradient while the logits
of a chunk exist, so nothing is computed twice. An output table that is not trained gets no gradient.

Shapes: B batch, T length, C tokens in one chunk, D model width, V vocabulary, L layers, P parts of a row along
`sequence`, E experts, S sequences in a row at most.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from tpullm.model.architecture import Tree
from tpullm.model.collectives import all_gather, reduce_gradient
from tpullm.model.experts.moe import Routing
from tpullm.model.linear import einsum
from tpullm.model.mesh import RULES, mesh_axes
from tpullm.model.platform import barrier_on_tpu, row_major_on_cpu, target_platform
from tpullm.recipe.schema import ModelConfig

# The most bytes of float32 logits in a chunk of the loss: see `logits_bytes`.
CHUNK, CHUNK_ON_CPU = 1 << 30, 64 << 20
AXES = ("vocabulary", "embed")  # of the table
VOCABULARY = mesh_axes(RULES.spec("vocabulary"), (0,))  # mesh axes that split the scores of one token
SPLIT = mesh_axes(RULES.spec("batch", "time"), (0, 1))  # mesh axes that split the tokens
GRADIENTS = RULES.spec("batch", "time", "width"), RULES.spec(*AXES)  # of the hidden states and of the table


class Sum(NamedTuple):
    """A weighted sum and the sum of the weights, float32 scalars. The sums of parts of a batch add up."""

    total: jax.Array
    weight: jax.Array


def weighted_sum(values: jax.Array, weights: jax.Array) -> Sum:
    """`sum(weights * values)` and `sum(weights)`, of arrays of one shape. Values of weight 0 may be anything finite."""
    return Sum(jnp.sum(weights * values), jnp.sum(weights))


def sum_by_sequence(values_BT: jax.Array, sequences_BT: jax.Array, count: int) -> jax.Array:
    """The sum of the values over the tokens of each sequence, `[B, S]`.

    Args:
        sequences_BT: int32, the number of the token's sequence in its row, from 1 to `count`; 0 for no sequence.
        count: S.
    """
    return jnp.sum(jnp.where(_sequence_members(sequences_BT, count), values_BT[..., None], 0), axis=1)


def values_to_tokens(values_BS: jax.Array, sequences_BT: jax.Array) -> jax.Array:
    """The value of each token's sequence, `[B, T]`; 0 for no sequence."""
    members_BTS = _sequence_members(sequences_BT, values_BS.shape[1])
    return jnp.sum(jnp.where(members_BTS, values_BS[:, None], 0), axis=-1)


def _sequence_members(sequences_BT, count):
    return sequences_BT[..., None] == jnp.arange(1, count + 1)


class Sums(NamedTuple):
    """Sums over the tokens of a batch, each times its weight. Sums of parts of a batch add up to those of the batch.

    `loss` in nats, `z` (squared log-normalizer), `weight`, `correct` (the likeliest token was the target). Of a model
    with experts also `balance` (for each token, the balance loss of its row) and `loads` `[L, E]` int32 (how many
    tokens without padding, of any weight, chose each expert). Of preferences and of answers that the model gave itself
    `told`: what else is logged, by name, each with its own weight. Of the latter nothing is `correct`.
    """

    loss: jax.Array
    z: jax.Array
    weight: jax.Array
    correct: jax.Array | None
    balance: jax.Array | None = None
    loads: jax.Array | None = None
    told: dict[str, Sum] | None = None


def logits_bytes() -> int:
    """The most bytes that the float32 logits of one chunk of the loss may have.

    64 MiB stay in a CPU's cache. An accelerator reads the whole output table for each chunk, so a chunk needs a
    thousand tokens to be bound by matmuls and not by memory: 1 GiB is 2,000 tokens of 128 Ki logits.
    """
    return CHUNK_ON_CPU if target_platform() == "cpu" else CHUNK


def chunk_length(batch: int, length: int, vocabulary: int, chunks: int = 0) -> int:
    """Tokens C of a row in one of `chunks`, on one device.

    If `chunks` is 0, the largest divisor of `length` whose logits `[B, C, V]` fit `logits_bytes`, at least 1.
    """
    if chunks:
        return length // chunks
    most = max(1, logits_bytes() // (4 * batch * vocabulary))
    return next(size for size in range(min(length, most), 0, -1) if length % size == 0)


def cross_entropy(
    hidden_BTD, table_VD, targets_BT, weights_BT, z_loss=0.0, softcap=0.0, reduce_dtype="compute", chunks=0
):
    """The sum of the next-token loss, without an array `[B, T, V]`.

    Args:
        table_VD: the parameter whose rows score the next token, sharded as at rest.
        softcap: bound of the logits, by tanh; 0 is none.
        reduce_dtype: as for `linear.matmul`.
        chunks: how many in a device's part of a row, a divisor of its length; 0 is as few as `logits_bytes` allows.

    Returns:
        `sum(weights * (nll + z_loss * log_normalizer**2))` to differentiate, and the `Sums`.
    """
    return _cross_entropy((z_loss, softcap, reduce_dtype, chunks), hidden_BTD, table_VD, targets_BT, weights_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, hidden_BTD, table_VD, targets_BT, weights_BT):
    z_loss, softcap, _, chunks = options

    def local(table_VD, *arrays_BT):
        def add_chunk(sums, chunk):
            chunk_sums, _ = _chunk_loss(*chunk, table_VD, softcap)
            return jax.tree.map(jnp.add, sums, chunk_sums), None

        sums, _ = jax.lax.scan(add_chunk, _zero_sums(), split_chunks(chunks, table_VD, *arrays_BT))
        return jax.tree.map(lambda x: jax.lax.psum(x, SPLIT), sums)

    gathered_VD = all_gather_table(table_VD, hidden_BTD)
    sums = jax.shard_map(local, out_specs=P())(gathered_VD, hidden_BTD, targets_BT, weights_BT)
    return sums.loss + z_loss * sums.z, sums


def _forward(options, *primals):
    """Computes the gradients in the forward pass, chunk by chunk while the logits exist, so nothing is recomputed.

    Each device has its own tokens. The gradients of the table are reduced over devices once, after the last chunk. A
    table that is not trained gets none: that saves a third of the matmuls.
    """
    z_loss, softcap, reduce_dtype, chunks = options
    hidden_BTD, table_VD, targets_BT, weights_BT = (primal.value for primal in primals)
    trained = primals[1].perturbed

    def local(table_VD, *arrays_BT):
        def add_chunk(carry, chunk):
            sums, dtable_DV = carry
            hidden_BCD, _, weights_BC = chunk
            chunk_sums, (log_z_BC1, logits_BCV, is_target_BCV) = _chunk_loss(*chunk, table_VD, softcap)
            p_BCV = jnp.exp(logits_BCV - log_z_BC1)
            dlogits_BCV = weights_BC[..., None] * (p_BCV * (1 + 2 * z_loss * log_z_BC1) - is_target_BCV)
            if softcap:
                dlogits_BCV *= 1 - jnp.square(logits_BCV / softcap)
            dhidden_BCD, dtable_DV = chunk_gradients(hidden_BCD, table_VD, dlogits_BCV, dtable_DV)
            return (jax.tree.map(jnp.add, sums, chunk_sums), dtable_DV), dhidden_BCD

        parts = split_chunks(chunks, table_VD, *arrays_BT)
        (sums, dtable_DV), dhidden = jax.lax.scan(add_chunk, (_zero_sums(), zero_gradient(table_VD, trained)), parts)
        sums = jax.tree.map(lambda x: jax.lax.psum(x, SPLIT), sums)
        return sums, *reduced_gradients(dhidden, dtable_DV, arrays_BT[0], table_VD.dtype, reduce_dtype)

    arguments = (all_gather_table(table_VD, hidden_BTD), hidden_BTD, targets_BT, weights_BT)
    sums, dhidden_BTD, dtable_VD = jax.shard_map(local, out_specs=(P(), *GRADIENTS))(*arguments)
    return (sums.loss + z_loss * sums.z, sums), (dhidden_BTD, table_gradient_at_rest(dtable_VD, table_VD))


def _backward(options, saved, cotangents):
    scale = cotangents[0]
    dhidden, dtable = jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), saved)
    return dhidden, dtable, None, None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def all_gather_table(table_VD, hidden_BTD):
    """The output table for its use, in the type of the hidden states."""
    return all_gather(table_VD, *AXES, dtype=hidden_BTD.dtype)


def _zero_sums() -> Sums:
    return Sums(*(jax.lax.pcast(jnp.zeros((), jnp.float32), SPLIT, to="varying") for _ in range(4)))


def split_chunks(chunks: int, table_VD, *arrays_BT):
    """Each `[B, T, ...]` of one device as `[T / C, B, C, ...]`."""
    B, T = arrays_BT[0].shape[:2]
    C = chunk_length(B, T, table_VD.shape[0], chunks)
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(B, T // C, C, *x.shape[2:]), 0, 1), arrays_BT)


def chunk_logits(hidden_BCD, table_VD, softcap):
    """The logits of one chunk in float32; `table_VD` is this device's part of the vocabulary."""
    logits_BCV = jnp.einsum("bcd,vd->bcv", hidden_BCD, table_VD, preferred_element_type=jnp.float32)
    return softcap * jnp.tanh(logits_BCV / softcap) if softcap else logits_BCV


def log_normalizer(logits_BCV):
    """The greatest logit and the logarithm of the sum of exponentials over the whole vocabulary, each `[B, C, 1]`."""
    most_BC1 = jax.lax.pmax(jnp.max(logits_BCV, axis=-1, keepdims=True), VOCABULARY)
    total_BC1 = jax.lax.psum(jnp.sum(jnp.exp(logits_BCV - most_BC1), axis=-1, keepdims=True), VOCABULARY)
    return most_BC1, most_BC1 + jnp.log(total_BC1)


def first_row(table_VD):
    """The token of the first row of this device's part of the table."""
    return jax.lax.axis_index(VOCABULARY) * table_VD.shape[0]


def _chunk_loss(hidden_BCD, targets_BC, weights_BC, table_VD, softcap):
    """The sums of one chunk, and what its gradient needs; `table_VD` is this device's part of the vocabulary."""
    logits_BCV = chunk_logits(hidden_BCD, table_VD, softcap)
    # A mask selects the target's logit: the device that has it adds it, the others add 0.
    is_target_BCV = first_row(table_VD) + jnp.arange(table_VD.shape[0]) == targets_BC[..., None]
    target_BCV = jnp.where(is_target_BCV, logits_BCV, 0)
    target_BC1 = jax.lax.psum(jnp.sum(target_BCV, axis=-1, keepdims=True), VOCABULARY)
    most_BC1, log_z_BC1 = log_normalizer(logits_BCV)
    nll_BC = (log_z_BC1 - target_BC1)[..., 0]
    sums = Sums(
        loss=jnp.sum(weights_BC * nll_BC),
        z=jnp.sum(weights_BC * jnp.square(log_z_BC1[..., 0])),
        weight=jnp.sum(weights_BC),
        correct=jnp.sum(weights_BC * (target_BC1 >= most_BC1)[..., 0]),
    )
    return sums, (log_z_BC1, logits_BCV, is_target_BCV)


def zero_gradient(table_VD, trained: bool):
    """What the gradients of chunks are added to, `[D, V]` in float32; None if the table is not trained."""
    if not trained:
        return None
    return jax.lax.pcast(jnp.zeros(table_VD.shape[::-1], jnp.float32), (*SPLIT, *VOCABULARY), to="varying")


def chunk_gradients(hidden_BCD, table_VD, dlogits_BCV, dtable_DV):
    """The gradient of a chunk's hidden states, from this device's part of the vocabulary, and the table's added up."""
    dlogits_BCV = dlogits_BCV.astype(hidden_BCD.dtype)
    dhidden_BCD = einsum("bcv,vd->bcd", dlogits_BCV, table_VD, None)
    if dtable_DV is not None:
        turned_DBC = row_major_on_cpu(hidden_BCD.transpose(2, 0, 1))
        dtable_DV += jnp.einsum("dbc,bcv->dv", turned_DBC, dlogits_BCV, preferred_element_type=jnp.float32)
    return dhidden_BCD, dtable_DV


def reduced_gradients(dhidden, dtable_DV, hidden_BTD, dtype, reduce_dtype: str):
    """The gradients of all chunks, `[T / C, B, C, D]` and `[D, V]`, summed over devices: sharded as `GRADIENTS`."""
    dhidden_BTD = jnp.swapaxes(dhidden, 0, 1).reshape(hidden_BTD.shape)
    if dtable_DV is None:
        return jax.lax.psum(dhidden_BTD, VOCABULARY), None
    dtable_VD = dtable_DV.T.astype(jnp.float32 if reduce_dtype == "float32" else dtype)
    # The compiler may move this reduction to the end of the step. Until then bfloat16 takes half the memory.
    dhidden_BTD, dtable_VD = barrier_on_tpu((dhidden_BTD, dtable_VD))
    dhidden_BTD = jax.lax.psum(dhidden_BTD, VOCABULARY)
    return dhidden_BTD, reduce_gradient(dtable_VD, *AXES, over=SPLIT).astype(jnp.float32)


def table_gradient_at_rest(dtable_VD, table_VD):
    """The gradient of the table in its type and sharding; None stays None."""
    at_rest = jax.typeof(table_VD).sharding.spec
    return None if dtable_VD is None else jax.reshard(dtable_VD.astype(table_VD.dtype), at_rest)


def balance_losses(routing: Routing, tokens_B: jax.Array, config: ModelConfig) -> jax.Array:
    """The balance loss of each row, `[B]`, summed over layers (DeepSeek-V3, equations 17 to 20, without alpha).

    `sum_e f_e p_e` with `f` the share of tokens that chose an expert, times `E / k`, and `p` its mean score: 1 at even
    loads. The choice is the actual one, with the bias. A row counts as one sequence, whatever is packed in it.

    Args:
        routing: of all layers, `[L, B, P, E]`.
        tokens_B: real tokens in each row.
    """
    tokens_B1 = jnp.maximum(tokens_B, 1).astype(jnp.float32)[:, None]
    loads_LBE, scores_LBE = (part.sum(axis=2) for part in routing)
    f_LBE = loads_LBE * (config.experts / config.experts_per_token) / tokens_B1
    return jnp.sum(f_LBE * scores_LBE / tokens_B1, axis=(0, 2))


def rebalanced_experts(params: Tree, before: Tree, loads_LE: jax.Array, rate: float) -> Tree:
    """The parameters after a step, with the biases of experts moved by `rate` from before it (Wang et al. 2024).

    Up if the expert's load over the whole batch is below the mean of its layer, and down if above. The optimizer's
    update of the biases is discarded.
    """
    moe = params["layers"]["mlp"]
    loads_LE = loads_LE.astype(jnp.float32)
    error_LE = loads_LE.mean(axis=1, keepdims=True) - loads_LE
    balance_LE = before["layers"]["mlp"]["balance"] + rate * jnp.sign(error_LE)
    return params | {"layers": params["layers"] | {"mlp": moe | {"balance": balance_LE}}}


def expert_load_metrics(loads_LE: jax.Array) -> dict[str, Any]:
    """For the log: loads as multiples of an even load, the extremes of all layers, and the mean over layers `[E]`."""
    relative_LE = loads_LE / jnp.maximum(loads_LE.mean(axis=1, keepdims=True), 1e-9)
    extremes = {"highest": relative_LE.max(), "lowest": relative_LE.min()}
    return {"expert_load": extremes, "expert_loads": relative_LE.mean(axis=0)}
