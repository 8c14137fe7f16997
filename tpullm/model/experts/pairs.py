"""Pairs of a token and one of its experts: their rows sorted by expert (dispatch), and the sum over each token's.

Shapes: M tokens, k experts of each, R = M k pairs, D model width (which may be several dimensions).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pairs(NamedTuple):
    """The pairs of a device, `[R]`; the pairs of one token are adjacent.

    Attributes:
        order: the pair that each row is, where rows are sorted by expert.
        inverse: the row that each pair is.
        used: whether the pair's row is computed; None is all. A row that is not computed may hold anything.
    """

    order: jax.Array
    inverse: jax.Array
    used: jax.Array | None = None


def sort_by_expert(experts_Mk: jax.Array) -> Pairs:
    """The pairs of tokens that chose the experts with these numbers."""
    order_R = jnp.argsort(experts_Mk.reshape(-1))
    return Pairs(order_R, jnp.argsort(order_R))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch(x_MD: jax.Array, pairs: Pairs, tokens: int) -> jax.Array:
    """The row of `x` for each pair, sorted by expert, `[R, D]`.

    `dispatch` and `combine` are transposes of each other. The gradient of each is therefore a gather and a sum, not a
    scatter with collisions, which is slow on a TPU.
    """
    return x_MD[pairs.order // (pairs.order.size // tokens)]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def combine(x_RD: jax.Array, pairs: Pairs, tokens: int) -> jax.Array:
    """The sum over the used rows of each token, in float32, `[M, D]`."""
    # All rows of first experts, then all of second ones, so that whole arrays are added. A TPU keeps the second to last
    # dimension in tiles of 8, and a sum along it is slower.
    by_turn = lambda x_R: x_R.reshape(tokens, -1).T  # noqa: E731
    x_kMD = x_RD[by_turn(pairs.inverse).reshape(-1)].reshape(-1, tokens, *x_RD.shape[1:])
    if pairs.used is None:
        return sum(x_MD.astype(jnp.float32) for x_MD in x_kMD)
    used_kM1 = by_turn(pairs.used).reshape(*x_kMD.shape[:2], *[1] * (x_RD.ndim - 1))
    return sum(jnp.where(used, x_MD.astype(jnp.float32), 0) for used, x_MD in zip(used_kM1, x_kMD, strict=True))


dispatch.defvjp(
    lambda x_MD, pairs, tokens: (dispatch(x_MD, pairs, tokens), pairs),
    lambda tokens, pairs, cotangent: (combine(cotangent, pairs, tokens).astype(cotangent.dtype), None),
)
combine.defvjp(
    lambda x_RD, pairs, tokens: (combine(x_RD, pairs, tokens), (pairs, jnp.zeros((), x_RD.dtype))),
    lambda tokens, saved, cotangent: (dispatch(cotangent.astype(saved[1].dtype), saved[0], tokens), None),
)
