"""Log-probabilities of given tokens, which objectives of tuning are made of, and the entropy of each next token.

Unlike `cross_entropy`, what a token counts for is known only in the backward pass. So the logits of a chunk are
computed again there: four matmuls instead of three, and three instead of two where the table is not trained. The
table is all-gathered again too.

Shapes: B batch, T length, C tokens in one chunk, D model width, V vocabulary, K tokens asked for at each place.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from tpullm.data.batch import Batch
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import RULES
from tpullm.training.losses import (
    GRADIENTS,
    VOCABULARY,
    all_gather_table,
    chunk_gradients,
    chunk_logits,
    first_row,
    log_normalizer,
    reduced_gradients,
    split_chunks,
    table_gradient_at_rest,
    zero_gradient,
)

PER_TOKEN, PER_CHOICE = RULES.spec("batch", "time"), RULES.spec("batch", "time", None)


def log_probabilities(
    hidden_BTD, table_VD, ids, softcap=0.0, temperature=1.0, reduce_dtype="compute", chunks=0, entropy=False
):
    """The log-probability of each of `ids` as the next token, float32, without an array `[B, T, V]`.

    Its gradient is that for any cotangent. That of a table which is not differentiated (a base under an adapter) is not
    computed.

    Args:
        table_VD, softcap, reduce_dtype, chunks: as for `cross_entropy`.
        ids: int32, `[B, T]` (the targets) or `[B, T, K]` (a teacher's likeliest tokens). None twice at one place.
        temperature: that of sampling; the logits are divided by it, after the softcap.
        entropy: also that of the distribution. Its gradient costs something only where it is used.

    Returns:
        The log-probabilities, in nats, of the shape of `ids`; the entropy `[B, T]`, in nats, or None.
    """
    options, one = (softcap, temperature, reduce_dtype, chunks, entropy), ids.ndim == 2
    logp_BTK, entropy_BT = _log_probabilities(options, hidden_BTD, table_VD, ids[..., None] if one else ids)
    return (logp_BTK[..., 0] if one else logp_BTK), entropy_BT


def token_log_probabilities(
    architecture: Architecture, params, batch: Batch, *, dtype, temperature=1.0, chunks=0, entropy=False, key=None
):
    """The log-probability of each target of rows with several answers, and the entropy there or None, `[B, T]`.

    Args:
        batch: in the order that the model reads it in (`to_zigzag_order`).
        temperature: that of sampling.
    """
    config, model = architecture.config, architecture.model(params)
    out = model(batch.inputs, batch.segment_ids, batch.positions, dtype=dtype, key=key, branched=True)
    with jax.named_scope("loss"):
        options = (config.logit_softcap, temperature, config.gradients, chunks, entropy)
        return log_probabilities(out.hidden, model.output_parameter(), batch.targets, *options)


def likeliest_tokens(hidden_BTD, table_VD, count: int, softcap=0.0, temperature=1.0, chunks=0):
    """The `count` likeliest next tokens, the best first: ids and log-probabilities `[B, T, K]`, without a gradient.

    A teacher's are kept like this. The arguments are those of `log_probabilities`.
    """

    def of_chunk(table_VD, hidden_BCD):
        logits_BCV = chunk_logits(hidden_BCD, table_VD, softcap) / temperature
        _, log_z_BC1 = log_normalizer(logits_BCV)
        best, rows = jax.lax.top_k(logits_BCV - log_z_BC1, min(count, table_VD.shape[0]))
        found = best, rows + first_row(table_VD)
        # The best of each device, then the best of these.
        best, ids = (jax.lax.all_gather(x, VOCABULARY, axis=2, tiled=True) for x in found)
        best_BCK, places_BCK = jax.lax.top_k(best, count)
        return jnp.take_along_axis(ids, places_BCK, axis=2), best_BCK

    arrays = jax.lax.stop_gradient((table_VD, hidden_BTD))
    # Every device of the vocabulary finds the same, which a gather does not tell.
    return _map_logit_chunks(of_chunk, chunks, PER_CHOICE, *arrays, check_vma=False)


def with_likeliest(hidden_BTD, table_VD, ids_BT, softcap=0.0, chunks=0):
    """The log-probability of each of `ids_BT` as the next token, and whether none is likelier; both `[B, T]`.

    Without a gradient, and in one pass over the logits. The arguments are those of `log_probabilities`.
    """

    def of_chunk(table_VD, hidden_BCD, ids_BCK):
        logits_BCV = chunk_logits(hidden_BCD, table_VD, softcap)
        most_BC1, log_z_BC1 = log_normalizer(logits_BCV)
        chosen_BCK = _select_logits(logits_BCV, ids_BCK - first_row(table_VD))
        return (chosen_BCK - log_z_BC1)[..., 0], (chosen_BCK >= most_BC1)[..., 0]

    arrays = jax.lax.stop_gradient((table_VD, hidden_BTD))
    return _map_logit_chunks(of_chunk, chunks, (PER_TOKEN, PER_TOKEN), *arrays, ids_BT[..., None])


def _map_logit_chunks(of_chunk, chunks: int, specs, table_VD, hidden_BTD, *arrays, **options):
    """What `of_chunk(table, hidden states, ...)` gives of each chunk of each device, as arrays `[B, T, ...]`."""

    def local(table_VD, *arrays):
        B, T = arrays[0].shape[:2]
        parts = split_chunks(chunks, table_VD, *arrays)
        _, found = jax.lax.scan(lambda _, chunk: (None, of_chunk(table_VD, *chunk)), None, parts)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(B, T, *x.shape[3:]), found)

    gathered_VD = all_gather_table(table_VD, hidden_BTD)
    return jax.shard_map(local, out_specs=specs, **options)(gathered_VD, hidden_BTD, *arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probabilities(options, hidden_BTD, table_VD, ids_BTK):
    logp_BTK, _, entropy_BT = _scores_of_ids(options, hidden_BTD, table_VD, ids_BTK)
    return logp_BTK, entropy_BT


def _scores_of_ids(options, hidden_BTD, table_VD, ids_BTK):
    """The log-probabilities `[B, T, K]`, the log-normalizer `[B, T]` and the entropy `[B, T]` or None."""
    softcap, temperature, _, chunks, entropy = options

    def of_chunk(table_VD, hidden_BCD, ids_BCK):
        logits_BCV = chunk_logits(hidden_BCD, table_VD, softcap) / temperature
        _, log_z_BC1 = log_normalizer(logits_BCV)
        chosen_BCK = _select_logits(logits_BCV, ids_BCK - first_row(table_VD)) - log_z_BC1
        entropy_BC = None
        if entropy:
            logp_BCV = logits_BCV - log_z_BC1
            entropy_BC = -jax.lax.psum(jnp.sum(jnp.exp(logp_BCV) * logp_BCV, axis=-1), VOCABULARY)
        return chosen_BCK, log_z_BC1[..., 0], entropy_BC

    return _map_logit_chunks(of_chunk, chunks, (PER_CHOICE, PER_TOKEN, PER_TOKEN), table_VD, hidden_BTD, ids_BTK)


def _forward(options, *primals):
    hidden_BTD, table_VD, ids_BTK = (primal.value for primal in primals)
    logp_BTK, log_z_BT, entropy_BT = _scores_of_ids(options, hidden_BTD, table_VD, ids_BTK)
    trained = () if primals[1].perturbed else None  # not a bool: what is saved becomes arrays
    return (logp_BTK, entropy_BT), (hidden_BTD, table_VD, ids_BTK, log_z_BT, entropy_BT, trained)


def _backward(options, saved, cotangents):
    softcap, temperature, reduce_dtype, chunks, _ = options
    hidden_BTD, table_VD, ids_BTK, log_z_BT, entropy_BT, trained = saved
    dlogp_BTK, dentropy_BT = (None if isinstance(cotangent, SymbolicZero) else cotangent for cotangent in cotangents)

    def local(table_VD, *arrays):
        def add_chunk(dtable_DV, chunk):
            hidden_BCD, *others = chunk
            capped_BCV = chunk_logits(hidden_BCD, table_VD, softcap)
            dlogits_BCV = _logit_gradients(softcap, temperature, capped_BCV, first_row(table_VD), *others)
            dhidden_BCD, dtable_DV = chunk_gradients(hidden_BCD, table_VD, dlogits_BCV, dtable_DV)
            return dtable_DV, dhidden_BCD

        parts = split_chunks(chunks, table_VD, *arrays)
        dtable_DV, dhidden = jax.lax.scan(add_chunk, zero_gradient(table_VD, trained is not None), parts)
        return reduced_gradients(dhidden, dtable_DV, arrays[0], table_VD.dtype, reduce_dtype)

    arrays = hidden_BTD, ids_BTK, log_z_BT, dlogp_BTK, entropy_BT, dentropy_BT
    gathered_VD = all_gather_table(table_VD, hidden_BTD)
    dhidden_BTD, dtable_VD = jax.shard_map(local, out_specs=GRADIENTS)(gathered_VD, *arrays)
    return dhidden_BTD.astype(hidden_BTD.dtype), table_gradient_at_rest(dtable_VD, table_VD), None


_log_probabilities.defvjp(_forward, _backward, symbolic_zeros=True)


def _logit_gradients(softcap, temperature, capped_BCV, first, ids_BCK, log_z_BC, dlogp_BCK, entropy_BC, dentropy_BC):
    """The gradient of the logits of a chunk before softcap and temperature; `capped_BCV` are those after the softcap.

    With z the divided logits and p their softmax, `d logp_k / dz_v = [k = v] - p_v` and
    `d entropy / dz_v = -p_v (log p_v + entropy)`.
    """
    logp_BCV = capped_BCV / temperature - log_z_BC[..., None]
    p_BCV, scale_BCV = jnp.exp(logp_BCV), 0.0
    if dlogp_BCK is not None:
        scale_BCV -= jnp.sum(dlogp_BCK, axis=-1, keepdims=True)
    if dentropy_BC is not None:
        scale_BCV -= dentropy_BC[..., None] * (logp_BCV + entropy_BC[..., None])
    dlogits_BCV = p_BCV * scale_BCV
    if dlogp_BCK is not None:
        dlogits_BCV = _add_at_ids(dlogits_BCV, ids_BCK - first, dlogp_BCK)
    if softcap:
        dlogits_BCV *= 1 - jnp.square(capped_BCV / softcap)
    return dlogits_BCV / temperature


def _select_logits(logits_BCV, rows_BCK):
    """The logits of `rows`, which may be another device's: the device that has one adds it, the others add 0.

    One row is found by a mask, which the compiler fuses into the pass over the logits that is made anyway.
    """
    V = logits_BCV.shape[-1]
    if rows_BCK.shape[-1] == 1:
        found_BCK = jnp.sum(jnp.where(jnp.arange(V) == rows_BCK, logits_BCV, 0), axis=-1, keepdims=True)
    else:
        within_BCK = (rows_BCK >= 0) & (rows_BCK < V)
        found_BCK = jnp.take_along_axis(logits_BCV, jnp.clip(rows_BCK, 0, V - 1), axis=-1)
        found_BCK = jnp.where(within_BCK, found_BCK, 0)
    return jax.lax.psum(found_BCK, VOCABULARY)


def _add_at_ids(dlogits_BCV, rows_BCK, values_BCK):
    """The transpose of `_select_logits`."""
    V = dlogits_BCV.shape[-1]
    if rows_BCK.shape[-1] == 1:
        return dlogits_BCV + jnp.where(jnp.arange(V) == rows_BCK, values_BCK, 0)
    B, C, _ = dlogits_BCV.shape
    # Rows of other devices get an index beyond the last, which is dropped. A negative one would count from the end.
    rows_BCK = jnp.where(rows_BCK >= 0, rows_BCK, V)
    places = jnp.arange(B)[:, None, None], jnp.arange(C)[:, None], rows_BCK
    return dlogits_BCV.at[places].add(values_BCK, mode="drop")
