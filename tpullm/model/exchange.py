"""Rows travel to the devices that hold their experts, and back: an all-to-all along the mesh axis `expert`, in rounds.

Shapes: R rows of one device (a token and one of its experts) sorted by expert, D model width, E experts; X devices
along the axis, G = E / X experts on each, C rows that one device sends to another in a round at most, S = X C that may
arrive.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.model.platform import has_ragged_exchange
from tpullm.sharding import AXES, RULES


class Route(NamedTuple):
    """Which rows this device sends and receives.

    Attributes:
        starts_X, sends_X: the first row for each device among the `R`, and how many are for it.
        theirs_X: the first row for this device among those of each device.
        receives_X: how many come from each.
        owners_R: the device that each row is for.
        places_R: which of the rows for that device each row is; outside of a round, below 0 or beyond C.
        counts_XG: how many rows come from each device for each expert that is here.
    """

    starts_X: jax.Array
    sends_X: jax.Array
    theirs_X: jax.Array
    receives_X: jax.Array
    owners_R: jax.Array
    places_R: jax.Array
    counts_XG: jax.Array


def whole_route(sizes_E: jax.Array, rows: int) -> Route:
    """The route of `rows` rows sorted by expert, `sizes_E` of each; every device along the axis must call this."""
    X, own = jax.lax.axis_size(RULES.experts), jax.lax.axis_index(RULES.experts)
    counts_XXG = jax.lax.all_gather(sizes_E, RULES.experts).reshape(X, X, -1)  # from, to, expert
    sends_XX = counts_XXG.sum(axis=-1)
    starts_XX = jnp.cumsum(sends_XX, axis=1) - sends_XX
    row_R = jnp.arange(rows)
    owners_R = jnp.sum(row_R[:, None] >= jnp.cumsum(sends_XX[own]), axis=1)
    places_R = row_R - starts_XX[own][owners_R]
    mine, theirs = (starts_XX[own], sends_XX[own]), (starts_XX[:, own], sends_XX[:, own])
    return Route(*mine, *theirs, owners_R, places_R, counts_XXG[:, own])


def rounds(route: Route, most: int) -> jax.Array:
    """How many rounds of `most` rows from one device to another are needed; all devices of the mesh make as many."""
    return jax.lax.pmax(-(-route.sends_X.max() // most), (*RULES.batch, RULES.time))


def of_round(route: Route, number: jax.Array, most: int) -> Route:
    """The route of round `number` alone: of the rows for a device, those from `number * most` on."""
    first, rows = number * most, route.places_R.size
    now = lambda count: jnp.clip(count - first, 0, most)  # noqa: E731
    start = lambda start, count: jnp.minimum(start + jnp.minimum(first, count), rows - 1)  # noqa: E731
    ends_XG = now(jnp.cumsum(route.counts_XG, axis=1))
    return Route(
        start(route.starts_X, route.sends_X),
        now(route.sends_X),
        start(route.theirs_X, route.receives_X),
        now(route.receives_X),
        route.owners_R,
        route.places_R - first,
        jnp.diff(ends_XG, axis=1, prepend=0),
    )


def by_expert(route: Route, most: int) -> tuple[jax.Array, jax.Array]:
    """The order `[S]` that sorts the rows that arrived by expert, unused places last, and each one's expert (or G)."""
    ends_XG = jnp.cumsum(route.counts_XG, axis=1)
    experts_S = jnp.sum(jnp.arange(most)[:, None] >= ends_XG[:, None, :], axis=-1).reshape(-1)
    order_S = jnp.argsort(experts_S)
    return order_S, experts_S[order_S]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sent(x_RD: jax.Array, route: Route, most: int) -> jax.Array:
    """The rows that arrive here, `[S, D]`: those of device x from `x C` on, and zeros where none came.

    `sent` and `returned` are each other's transpose: the gradient of one is the other.
    """
    X, D = route.sends_X.size, x_RD.shape[-1]
    if has_ragged_exchange():
        places_X = jnp.full_like(route.starts_X, jax.lax.axis_index(RULES.experts) * most)
        sizes = (route.starts_X, route.sends_X, places_X, route.receives_X)
        return jax.lax.ragged_all_to_all(x_RD, _zeros(X * most, x_RD), *sizes, axis_name=RULES.experts)
    slot_C = jnp.arange(most)
    rows_XC = jnp.minimum(route.starts_X[:, None] + slot_C, x_RD.shape[0] - 1)
    used_XC1 = (slot_C < route.sends_X[:, None])[..., None]
    return _exchanged(jnp.where(used_XC1, x_RD[rows_XC], 0)).reshape(-1, D)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def returned(x_SD: jax.Array, route: Route, most: int) -> jax.Array:
    """What `sent` brought, back at its place `[R, D]` on the device that it came from; zeros for rows not sent."""
    X, R, D = route.sends_X.size, route.places_R.size, x_SD.shape[-1]
    if has_ragged_exchange():
        sizes = (jnp.arange(X) * most, route.receives_X, route.theirs_X, route.sends_X)
        return jax.lax.ragged_all_to_all(x_SD, _zeros(R, x_SD), *sizes, axis_name=RULES.experts)
    x_RD = _exchanged(x_SD.reshape(X, most, D))[route.owners_R, jnp.clip(route.places_R, 0, most - 1)]
    return jnp.where(((route.places_R >= 0) & (route.places_R < most))[:, None], x_RD, 0)


sent.defvjp(
    lambda x_RD, route, most: (sent(x_RD, route, most), route),
    lambda most, route, cotangent: (returned(cotangent, route, most), None),
)
returned.defvjp(
    lambda x_SD, route, most: (returned(x_SD, route, most), route),
    lambda most, route, cotangent: (sent(cotangent, route, most), None),
)


@jax.custom_vjp
def permuted(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """The rows of `x` in that order. The gradient is the inverse order, and not a scatter, which a TPU is slow at."""
    return x[order]


permuted.defvjp(
    lambda x, order, inverse: (permuted(x, order, inverse), (order, inverse)),
    lambda saved, cotangent: (permuted(cotangent, saved[1], saved[0]), None, None),
)


def varying(x: jax.Array, *axes: str) -> jax.Array:
    """`x` as what may differ along these axes, though it is the same: the sum of its gradients is taken here."""
    return jax.lax.pcast(x, axes, to="varying")


def _exchanged(x_XCD):
    return jax.lax.all_to_all(x_XCD, RULES.experts, 0, 0, tiled=True)


def _zeros(rows, x):
    return varying(jnp.zeros((rows, x.shape[-1]), x.dtype), *AXES)
