"""Rows travel to the devices that hold their experts, and back: an all-to-all along the mesh axis `expert`, in rounds.

Shapes: R rows of one device (a token and one of its experts) sorted by expert, D model width, E experts; X devices
along the axis, G = E / X experts on each, S rows that may arrive in a round; where all devices must send as much to
each, C = S / X of one. A piece is the rows of one device for one expert: a device sends E of them and gets X G.

Where nothing came, an array holds anything, NaN too: its users take the rows of pieces alone. (To fill the buffers with
zeros took a sixth of the step of `8x7b` by the TPU compiler's estimate.)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.mesh.layout import RULES, device
from tpullm.model.platform import target

UNFILLED = "unfilled"  # the name in a program of the kernel that does nothing


class Pieces(NamedTuple):
    """Some pieces, `[E]` or `[X G]`: where they begin among the `R` rows at home, among the `S` of their experts'
    device, which are sorted by expert, and in the padded buffers `[X C]` of that side; and how long they are.
    """

    home: jax.Array
    away: jax.Array
    padded: jax.Array
    sizes: jax.Array


class Route(NamedTuple):
    """What this device sends and gets in a round: pieces `[E]` and `[X G]`."""

    sends: Pieces
    gets: Pieces


def counted(sizes_E: jax.Array) -> jax.Array:
    """The sizes of the pieces of all devices along the axis, `[X, E]`; every one of them must call this."""
    return jax.lax.all_gather(sizes_E, RULES.experts)


def most_in_a_round(rows: int, worst: int, devices: int, ragged: bool) -> int:
    """How many rows may arrive at a device in a round, `S`.

    A quarter more than an even load where devices send each other uneven numbers, since all devices' rows together are
    spread more evenly over experts than those of one; half more where one device sends as much to each.

    Args:
        rows: of one device.
        worst: that it can send to one other device.
    """
    return min(devices * worst, -(-rows * 5 // 4)) if ragged else devices * min(worst, -(-rows * 3 // (2 * devices)))


def rounds(counts_XE: jax.Array, most: int) -> jax.Array:
    """How many rounds are needed in which `most` rows arrive; all devices of the mesh make as many."""
    X = counts_XE.shape[0]
    pairs_XX = counts_XE.reshape(X, X, -1).sum(axis=-1)
    arriving, fit = (pairs_XX.sum(axis=0), most) if has_ragged_exchange() else (pairs_XX, most // X)
    return jax.lax.pmax(-(-arriving.max() // fit), (*RULES.batch, RULES.time))


def of_round(counts_XE: jax.Array, number: jax.Array | int, most: int) -> Route:
    """The route of round `number`: of the rows for a device, or from one to another, those from `number * fit` on."""
    X, E = counts_XE.shape
    own, slots = jax.lax.axis_index(RULES.experts), most // X
    counts_XXG = counts_XE.reshape(X, X, -1)  # from, to, expert
    pairs_XX1 = counts_XXG.sum(axis=-1, keepdims=True)
    starts_XXG = jnp.cumsum(counts_XXG, axis=-1) - counts_XXG
    if has_ragged_exchange():
        first_XX1, fit = number * most - (jnp.cumsum(pairs_XX1, axis=0) - pairs_XX1), most
    else:
        first_XX1, fit = number * slots, slots
    passed_XXG = jnp.clip(first_XX1 - starts_XXG, 0, counts_XXG)
    sizes_XXG = jnp.clip(first_XX1 + fit - starts_XXG, 0, counts_XXG) - passed_XXG
    home_XXG = (jnp.cumsum(counts_XE, axis=1) - counts_XE).reshape(X, X, -1) + passed_XXG
    by_expert_XGX = jnp.moveaxis(sizes_XXG, 0, -1)
    ends_XGX = jnp.cumsum(by_expert_XGX.reshape(X, E), axis=1).reshape(by_expert_XGX.shape)
    away_XXG = jnp.moveaxis(ends_XGX - by_expert_XGX, -1, 0)
    within_XXG = jnp.cumsum(sizes_XXG, axis=-1) - sizes_XXG

    def pieces(of):
        padded_XG = slots * jnp.arange(X)[:, None] + of(within_XXG)
        return Pieces(*(x.reshape(-1) for x in (of(home_XXG), of(away_XXG), padded_XG, of(sizes_XXG))))

    return Route(pieces(lambda x_XXG: x_XXG[own]), pieces(lambda x_XXG: x_XXG[:, own]))


def group_sizes(route: Route) -> jax.Array:
    """How many rows each of the experts that are here gets, `[G]`."""
    return route.gets.sizes.reshape(jax.lax.axis_size(RULES.experts), -1).sum(axis=0)


def travels(route: Route, row_R: jax.Array) -> jax.Array:
    """Whether each of these rows at home is sent in the round."""
    starts_E = route.sends.home
    return jnp.any((row_R[:, None] >= starts_E) & (row_R[:, None] < starts_E + route.sends.sizes), axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def sent(x_RD: jax.Array, route: Route, rows: int, most: int) -> jax.Array:
    """The rows that arrive here, sorted by expert, `[S, D]`; `D` may be several dimensions.

    `sent` and `returned` are each other's transpose: the gradient of one is the other.

    Args:
        rows, most: `R` and `S`.
    """
    sends, gets = route
    if has_ragged_exchange():
        return _ragged(x_RD, most, sends.home, sends.sizes, sends.away, gets.sizes)
    x_XCD = _exchanged(x_RD[_sources(sends.padded, sends.home, sends.sizes, most, rows)])
    by_expert = lambda x_P: x_P.reshape(jax.lax.axis_size(RULES.experts), -1).T.reshape(-1)  # noqa: E731
    return x_XCD[_sources(*map(by_expert, (gets.away, gets.padded, gets.sizes)), most, most)]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def returned(x_SD: jax.Array, route: Route, rows: int, most: int) -> jax.Array:
    """What `sent` brought, back at its place among the rows of the device that it came from, `[R, D]`."""
    sends, gets = route
    if has_ragged_exchange():
        return _ragged(x_SD, rows, gets.away, gets.sizes, gets.home, sends.sizes)
    x_XCD = _exchanged(x_SD[_sources(gets.padded, gets.away, gets.sizes, most, most)])
    return x_XCD[_sources(sends.home, sends.padded, sends.sizes, rows, most)]


sent.defvjp(
    lambda x_RD, route, rows, most: (sent(x_RD, route, rows, most), route),
    lambda rows, most, route, cotangent: (returned(cotangent, route, rows, most), None),
)
returned.defvjp(
    lambda x_SD, route, rows, most: (returned(x_SD, route, rows, most), route),
    lambda rows, most, route, cotangent: (sent(cotangent, route, rows, most), None),
)


def varying(x: jax.Array, *axes: str) -> jax.Array:
    """`x` as what may differ along these axes, though it is the same: the sum of its gradients is taken here."""
    return jax.lax.pcast(x, axes, to="varying")


def _exchanged(x_SD):
    x_XCD = x_SD.reshape(jax.lax.axis_size(RULES.experts), -1, *x_SD.shape[1:])
    return jax.lax.all_to_all(x_XCD, RULES.experts, 0, 0, tiled=True).reshape(x_SD.shape)


def _sources(targets_P, sources_P, sizes_P, rows, sources):
    """For each of `rows` places which of the `sources` comes there, by pieces in the order of their targets."""
    place = jnp.arange(rows)
    piece = jnp.sum(place[:, None] >= targets_P + sizes_P, axis=1).clip(max=targets_P.size - 1)
    return (place + (sources_P - targets_P)[piece]).clip(0, sources - 1)


def _ragged(x, rows, starts, sizes, targets, arriving):
    shape = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
    buffer = _unfilled(shape, x, starts)
    return jax.lax.ragged_all_to_all(x, buffer, starts, sizes, targets, arriving, axis_name=RULES.experts)


def _unfilled(shape, *given):
    """An array that nothing is written to, by a TPU's kernel of no instructions.

    It is given what no other exchange has: `lax.empty`, of nothing, is taken out of the loops over layers and rounds,
    and copied in each turn; and two that are given the same are one array, and a copy of it.
    """
    from jax.experimental import pallas as pl  # 0.4 s that a CPU need not spend

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    places = {"in_specs": [anywhere] * len(given), "out_specs": anywhere}
    return pl.pallas_call(lambda *_: None, out_shape=shape, name=UNFILLED, **places)(*given)


def has_ragged_exchange() -> bool:
    """Whether devices of the mesh can send each other rows of uneven numbers in one operation, and not padded.

    TPUs can, but v5e: its compiler refuses on 64 and 256 chips ("not supported in limited ICI routing settings", libtpu
    0.0.50), where those of v5p and v6e don't. XLA for a CPU does not compile `ragged-all-to-all` (JAX 0.10 and 0.12),
    and nobody has tried several GPUs here. All these send padded rows, to the same numbers.
    """
    return target() == "tpu" and device() is not None and of_kind(device().device_kind).ragged_exchange


def row_shape(width: int) -> tuple[int, ...]:
    """The dimensions of a row of that width that is gathered and sent by itself, in which it is one piece of memory.

    A TPU keeps `[rows, width]` in tiles of 8 rows; there a row that is alone is laid out anew, in tiles of 2.
    """
    return (8, width // 8) if target() == "tpu" and width % (8 * 128) == 0 else (width,)
