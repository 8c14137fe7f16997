"""Weighted sums that add up over micro-batches, and sums over each sequence of packed rows.

Every objective returns a dict of `Sum`, `loss` among them. A step differentiates `loss.total`, adds up the sums of its
micro-batches and divides by the whole `loss.weight`, so its gradient does not depend on how the batch is cut.

Shapes: B batch, T length, S sequences in a row at most.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sum(NamedTuple):
    """A weighted sum and the sum of the weights, float32 scalars. The sums of parts of a batch add up."""

    total: jax.Array
    weight: jax.Array


def weighted_sum(values: jax.Array, weights: jax.Array) -> Sum:
    """`sum(weights * values)` and `sum(weights)`, of arrays of one shape. Values of weight 0 may be anything finite."""
    return Sum(jnp.sum(weights * values), jnp.sum(weights))


def means(sums: Mapping[str, Sum]) -> dict[str, float]:
    """The means to log, of sums on the host; without those whose weight is 0."""
    return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}


def sum_by_sequence(values_BT: jax.Array, sequences_BT: jax.Array, count: int) -> jax.Array:
    """The sum of the values over the tokens of each sequence, `[B, S]`.

    Args:
        sequences_BT: int32, the number of the token's sequence in its row, from 1 to `count`; 0 for no sequence.
        count: S.
    """
    return jnp.sum(jnp.where(_members(sequences_BT, count), values_BT[..., None], 0), axis=1)


def to_tokens(values_BS: jax.Array, sequences_BT: jax.Array) -> jax.Array:
    """The value of each token's sequence, `[B, T]`; 0 for no sequence."""
    members_BTS = _members(sequences_BT, values_BS.shape[1])
    return jnp.sum(jnp.where(members_BTS, values_BS[:, None], 0), axis=-1)


def _members(sequences_BT, count):
    return sequences_BT[..., None] == jnp.arange(1, count + 1)
