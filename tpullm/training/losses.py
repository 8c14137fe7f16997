"""The loss: how surprised the model is by each next token.

Shapes: B batch, T length, C tokens in one chunk, D model width, V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.model.layers import einsum
from tpullm.model.platform import in_memory_order
from tpullm.model.transformer import logits
from tpullm.sharding import RULES

# Logits of one chunk take at most about this many bytes in float32, whatever the batch and the vocabulary.
CHUNK_BYTES = 64 << 20


class Sums(NamedTuple):
    """Sums over the tokens of a batch, each times its weight. Sums, so that parts of a batch add up to the whole.

    `loss` in nats, `z` (squared log-normalizer), `weight`, `correct` (the likeliest token was the right one). Of a
    model with experts also `balance` (a token's is the balance loss of its row) and `loads` `[L, E]` int32 (how many
    real tokens, of any weight, chose each expert).
    """

    loss: jax.Array
    z: jax.Array
    weight: jax.Array
    correct: jax.Array
    balance: jax.Array | None = None
    loads: jax.Array | None = None


def chunk_length(batch: int, length: int, vocabulary: int) -> int:
    """The largest divisor of `length` whose logits `[B, C, V]` fit `CHUNK_BYTES` (at least 1)."""
    most = max(1, CHUNK_BYTES // (4 * batch * vocabulary))
    return next(size for size in range(min(length, most), 0, -1) if length % size == 0)


def cross_entropy(hidden_BTD, table_VD, targets_BT, weights_BT, z_loss: float = 0.0, softcap: float = 0.0):
    """Next-token loss, summed, without ever holding `[B, T, V]`.

    Args:
        softcap: bound of the logits, by tanh; 0 is none.

    Returns:
        `sum(weights * (nll + z_loss * log_normalizer**2))` to differentiate, and the `Sums`.
    """
    return _cross_entropy((z_loss, softcap), hidden_BTD, table_VD, targets_BT, weights_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, hidden_BTD, table_VD, targets_BT, weights_BT):
    z_loss, softcap = options

    def add_chunk(sums, chunk):
        chunk_sums, _ = _chunk(*chunk, table_VD, softcap)
        return jax.tree.map(jnp.add, sums, chunk_sums), None

    sums, _ = jax.lax.scan(add_chunk, _zeros(), _chunks(table_VD, hidden_BTD, targets_BT, weights_BT))
    return sums.loss + z_loss * sums.z, sums


def _forward(options, hidden_BTD, table_VD, targets_BT, weights_BT):
    """The gradients are computed here, chunk by chunk, while the logits exist: nothing is computed twice."""
    z_loss, softcap = options

    def add_chunk(carry, chunk):
        sums, dtable = carry
        hidden_BCD, targets_BC, weights_BC = chunk
        chunk_sums, (log_z_BC1, logits_BCV, is_target_BCV) = _chunk(*chunk, table_VD, softcap)
        p_BCV = jnp.exp(logits_BCV - log_z_BC1)
        dlogits = weights_BC[..., None] * (p_BCV * (1 + 2 * z_loss * log_z_BC1) - is_target_BCV)
        if softcap:
            dlogits *= 1 - jnp.square(logits_BCV / softcap)
        dlogits = dlogits.astype(hidden_BCD.dtype)
        spec = RULES.spec("batch", "time", "width")
        dhidden = einsum("bcv,vd->bcd", dlogits, table_VD, spec)
        turned_DBC = in_memory_order(hidden_BCD.transpose(2, 0, 1))
        dtable += jnp.einsum(
            "dbc,bcv->dv", turned_DBC, dlogits, out_sharding=table_spec, preferred_element_type=jnp.float32
        )
        return (jax.tree.map(jnp.add, sums, chunk_sums), dtable), dhidden

    table_spec = RULES.spec(None, "vocabulary")
    start = (_zeros(), jax.reshard(jnp.zeros(table_VD.shape[::-1], jnp.float32), table_spec))
    chunks = _chunks(table_VD, hidden_BTD, targets_BT, weights_BT)
    (sums, dtable), dhidden = jax.lax.scan(add_chunk, start, chunks)
    dhidden_BTD = jnp.moveaxis(dhidden, 0, 2).reshape(hidden_BTD.shape)
    dhidden_BTD = jax.reshard(dhidden_BTD, RULES.spec("batch", "time", "width"))
    return (sums.loss + z_loss * sums.z, sums), (dhidden_BTD, dtable.T.astype(table_VD.dtype))


def _backward(options, saved, cotangents):
    dhidden, dtable = saved
    scale = cotangents[0]
    return (dhidden * scale).astype(dhidden.dtype), (dtable * scale).astype(dtable.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _zeros() -> Sums:
    return Sums(*(jnp.zeros((), jnp.float32) for _ in range(4)))


def _chunks(table_VD, *arrays_BT):
    """Each `[B, T, ...]` as `[T / C, B, C, ...]`: a chunk takes every (T / C)-th token, so that time stays spread."""
    B, T = arrays_BT[0].shape[:2]
    C = chunk_length(B, T, table_VD.shape[0])

    def cut(x):
        chunks = jnp.moveaxis(x.reshape(B, C, T // C, *x.shape[2:]), 2, 0)
        return jax.reshard(chunks, RULES.spec(None, "batch", "time", *[None] * (x.ndim - 2)))

    return tuple(cut(x) for x in arrays_BT)


def _chunk(hidden_BCD, targets_BC, weights_BC, table_VD, softcap):
    logits_BCV = logits(hidden_BCD, table_VD, softcap)
    # The label's logit is selected by a mask: a gather would need the vocabulary, which may be sharded, in one place.
    is_target_BCV = jnp.arange(table_VD.shape[0]) == targets_BC[..., None]
    target_BC1 = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0), axis=-1, keepdims=True)
    most_BC1 = jnp.max(jax.lax.stop_gradient(logits_BCV), axis=-1, keepdims=True)
    log_z_BC1 = most_BC1 + jnp.log(jnp.sum(jnp.exp(logits_BCV - most_BC1), axis=-1, keepdims=True))
    nll_BC = (log_z_BC1 - target_BC1)[..., 0]
    sums = Sums(
        loss=jnp.sum(weights_BC * nll_BC),
        z=jnp.sum(weights_BC * jnp.square(log_z_BC1[..., 0])),
        weight=jnp.sum(weights_BC),
        correct=jnp.sum(weights_BC * (target_BC1 >= most_BC1)[..., 0]),
    )
    return sums, (log_z_BC1, logits_BCV, is_target_BCV)
