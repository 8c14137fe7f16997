"""The pairs of a token and one of its experts: their rows sorted by expert, and the sum over each token's.

Shapes: M tokens, k experts of each, R = M k pairs, D model width (which may be several dimensions).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pairs(NamedTuple):
    """The pairs of a device, `[R]`; those of a token are next to each other.

    Attributes:
        order: the pair that each row is, where rows are sorted by expert.
        inverse: the row that each pair is.
        used: whether the pair's row is computed; None is all. A row that is not may hold anything.
    """

    order: jax.Array
    inverse: jax.Array
    used: jax.Array | None = None


def pairs(experts_Mk: jax.Array) -> Pairs:
    """Those of tokens whose experts have these numbers."""
    order_R = jnp.argsort(experts_Mk.reshape(-1))
    return Pairs(order_R, jnp.argsort(order_R))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def spread(x_MD: jax.Array, of: Pairs, tokens: int) -> jax.Array:
    """The row of `x` for each pair, sorted by expert, `[R, D]`.

    `spread` and `together` are each other's transpose: the gradient is a gather and a sum, and not a scatter with
    collisions, which a TPU is slow at.
    """
    return x_MD[of.order // (of.order.size // tokens)]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def together(x_RD: jax.Array, of: Pairs, tokens: int) -> jax.Array:
    """The sum over the rows of each token, in float32, of those that are used: `[M, D]`."""
    # Rows of first experts, then of second ones: then a sum is of arrays, and not along what a TPU keeps in tiles of 8.
    by_turn = lambda x_R: x_R.reshape(tokens, -1).T  # noqa: E731
    x_kMD = x_RD[by_turn(of.inverse).reshape(-1)].reshape(-1, tokens, *x_RD.shape[1:])
    if of.used is None:
        return sum(x_MD.astype(jnp.float32) for x_MD in x_kMD)
    used_kM1 = by_turn(of.used).reshape(*x_kMD.shape[:2], *[1] * (x_RD.ndim - 1))
    return sum(jnp.where(used, x_MD.astype(jnp.float32), 0) for used, x_MD in zip(used_kM1, x_kMD, strict=True))


spread.defvjp(
    lambda x_MD, of, tokens: (spread(x_MD, of, tokens), of),
    lambda tokens, of, cotangent: (together(cotangent, of, tokens).astype(cotangent.dtype), None),
)
together.defvjp(
    lambda x_RD, of, tokens: (together(x_RD, of, tokens), (of, jnp.zeros((), x_RD.dtype))),
    lambda tokens, saved, cotangent: (spread(cotangent.astype(saved[1].dtype), saved[0], tokens), None),
)
