"""Held-out loss: the loss on text that the model is not trained on."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tpullm.data.batch import Batch, PairBatch, TaughtBatch
from tpullm.model.architecture import Architecture
from tpullm.model.rows import put
from tpullm.training.losses import Sums
from tpullm.training.step import accumulate, batch_loss, with_divergence

Tree = Any


@functools.cache  # the stages of one command share the compiled program
def make_evaluation(architecture: Architecture, dtype, accumulation: int = 1, chunks: int = 0):
    """The compiled `(params, batch) -> Sums`, without dropout or gradients.

    Args:
        accumulation, chunks: as in the training's step, which then has a larger peak of memory than the evaluation.
    """

    def sums(params: Tree, batch: Batch, key: None) -> Sums:
        return batch_loss(architecture, params, batch, dtype=dtype, chunks=chunks)[1]

    def evaluate(params: Tree, batch: Batch) -> Sums:
        batch = with_divergence(architecture, params, batch, accumulation, dtype, chunks)
        return accumulate(sums, accumulation, params, batch, None)

    return jax.jit(evaluate)


@jax.jit
def _text_bytes(bytes_per_token_V: jax.Array, batch: Batch) -> jax.Array:
    """UTF-8 bytes of a batch's targets of weight > 0, over all hosts; int32, exact."""
    sharding = jax.typeof(batch.targets).sharding
    bytes_BT = bytes_per_token_V.astype(jnp.int32).at[batch.targets].get(out_sharding=sharding)
    return jnp.sum(jnp.where(batch.weights > 0, bytes_BT, 0))


def held_out(
    evaluate, params: Tree, mesh: Mesh, batches: Mapping[str, Iterable[Batch]], bytes_per_token: np.ndarray
) -> dict[str, dict[str, float]]:
    """`eval_loss` (nats a token) and `eval_bits_per_byte` of each source.

    Bits per byte include the loss of end-of-document tokens, and divide by the bytes of the text alone. Of preferences
    the loss is a mean over pairs, and `eval_accuracy` the share of pairs whose chosen answer wins; of judged answers it
    is the share of those that are judged right. Where a teacher has said how likely each token is, `eval_divergence` is
    the loss against that, nats a token.

    Args:
        evaluate: of `make_evaluation`.
        bytes_per_token: UTF-8 bytes of each token id, `[V]`.
    """
    loss, bits, right, taught = {}, {}, {}, {}
    for source, source_batches in batches.items():
        nats = weight = text_bytes = correct = divergence = 0.0
        pairs = False
        for batch in source_batches:
            if isinstance(batch, TaughtBatch):
                divergence += float(evaluate(params, put(mesh, batch)).loss)
                taught[source], batch = divergence, batch.plain
            placed = put(mesh, batch)
            sums, batch_bytes = jax.device_get((evaluate(params, placed), _text_bytes(bytes_per_token, placed)))
            nats, weight = nats + float(sums.loss), weight + float(sums.weight)
            text_bytes, correct = text_bytes + float(batch_bytes), correct + float(sums.correct)
            pairs = isinstance(batch, PairBatch)
        loss[source] = nats / max(weight, 1.0)
        if source in taught:
            taught[source] /= max(weight, 1.0)
        if pairs:
            right[source] = correct / max(weight, 1.0)
        else:
            bits[source] = nats / np.log(2) / max(text_bytes, 1.0)
    more = {"eval_accuracy": right, "eval_divergence": taught}
    return {"eval_loss": loss, "eval_bits_per_byte": bits} | {name: found for name, found in more.items() if found}
