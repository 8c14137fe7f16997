"""Rows of tokens go to the devices of their experts and back: an all-to-all along the mesh axis `expert`, in rounds.

`dispatch` sorts the pairs of a token and one of its experts by expert. `combine` adds up the rows of each token. The
buffers of a round hold a quarter more than an even load, or half more in a padded exchange. If the load is less even
there are more rounds, so no token is ever dropped.

Shapes: M tokens, k experts of each, R = M k pairs, which are rows of one device sorted by expert; D model width (which
may be several dimensions), E experts; X devices along the axis, G = E / X experts on each; S rows, the capacity of a
device in a round. In a padded exchange each device sends C = S / X rows to each. A chunk is the rows of one device for
one expert: a device sends E of them and receives X G.

Rows of a buffer that no chunk covers are uninitialized and may hold NaN; only the rows of chunks are read. (To zero
the buffers took a sixth of the step of `8x7b` by the TPU compiler's estimate.)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.model.mesh import RULES, abstract_device
from tpullm.model.platform import target_platform


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


UNINITIALIZED = "unfilled"  # the name in a compiled program of the kernel that writes nothing


class Chunks(NamedTuple):
    """Chunks `[E]` or `[X G]`, by their offsets and sizes in rows.

    Offsets of each chunk in the sender's R rows and in the receiver's S rows, which are sorted by expert; and in the
    padded buffers `[X C]` of the side that these chunks are on.
    """

    sender_offsets: jax.Array
    receiver_offsets: jax.Array
    padded_offsets: jax.Array
    sizes: jax.Array


class Exchange(NamedTuple):
    """The chunks that this device sends and receives in a round: `[E]` and `[X G]`."""

    sends: Chunks
    receives: Chunks


def round_capacity(rows: int, worst: int, devices: int, ragged: bool) -> int:
    """How many rows a device can receive in a round, `S`.

    A quarter more than an even load in a ragged exchange, half more in a padded one: the rows of all devices together
    are distributed over experts more evenly than the rows of one device.

    Args:
        rows: of one device.
        worst: that it can send to one other device.
        ragged: whether devices send each other uneven numbers of rows, see `has_ragged_all_to_all`.
    """
    return min(devices * worst, -(-rows * 5 // 4)) if ragged else devices * min(worst, -(-rows * 3 // (2 * devices)))


def round_count(counts_XE: jax.Array, capacity: int) -> jax.Array:
    """How many rounds of this capacity are needed; the same on all devices of the mesh."""
    X = counts_XE.shape[0]
    pairs_XX = counts_XE.reshape(X, X, -1).sum(axis=-1)
    arriving, fit = (pairs_XX.sum(axis=0), capacity) if has_ragged_all_to_all() else (pairs_XX, capacity // X)
    return jax.lax.pmax(-(-arriving.max() // fit), (*RULES.batch, RULES.time))


def plan_round(counts_XE: jax.Array, number: jax.Array | int, capacity: int) -> Exchange:
    """The exchange of round `number`: a window of `fit` rows from `number * fit` on.

    In a ragged exchange the window is over all rows for a device and `fit` is its capacity; in a padded one it is over
    the rows from one device to another, and `fit` is C.
    """
    X, E = counts_XE.shape
    own, slots = jax.lax.axis_index(RULES.experts), capacity // X
    counts_XXG = counts_XE.reshape(X, X, -1)  # from, to, expert
    pairs_XX1 = counts_XXG.sum(axis=-1, keepdims=True)
    starts_XXG = jnp.cumsum(counts_XXG, axis=-1) - counts_XXG
    if has_ragged_all_to_all():
        first_XX1, fit = number * capacity - (jnp.cumsum(pairs_XX1, axis=0) - pairs_XX1), capacity
    else:
        first_XX1, fit = number * slots, slots
    passed_XXG = jnp.clip(first_XX1 - starts_XXG, 0, counts_XXG)
    sizes_XXG = jnp.clip(first_XX1 + fit - starts_XXG, 0, counts_XXG) - passed_XXG
    sender_XXG = (jnp.cumsum(counts_XE, axis=1) - counts_XE).reshape(X, X, -1) + passed_XXG
    by_expert_XGX = jnp.moveaxis(sizes_XXG, 0, -1)
    ends_XGX = jnp.cumsum(by_expert_XGX.reshape(X, E), axis=1).reshape(by_expert_XGX.shape)
    receiver_XXG = jnp.moveaxis(ends_XGX - by_expert_XGX, -1, 0)
    within_XXG = jnp.cumsum(sizes_XXG, axis=-1) - sizes_XXG

    def chunks(of):
        padded_XG = slots * jnp.arange(X)[:, None] + of(within_XXG)
        return Chunks(*(x.reshape(-1) for x in (of(sender_XXG), of(receiver_XXG), padded_XG, of(sizes_XXG))))

    return Exchange(chunks(lambda x_XXG: x_XXG[own]), chunks(lambda x_XXG: x_XXG[:, own]))


def received_sizes(exchange: Exchange) -> jax.Array:
    """How many rows each expert of this device receives, `[G]`."""
    return exchange.receives.sizes.reshape(jax.lax.axis_size(RULES.experts), -1).sum(axis=0)


def sent_in_round(exchange: Exchange, row_R: jax.Array) -> jax.Array:
    """Whether the round sends each of these rows of this device, `[R]` bool."""
    starts_E = exchange.sends.sender_offsets
    return jnp.any((row_R[:, None] >= starts_E) & (row_R[:, None] < starts_E + exchange.sends.sizes), axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def all_to_all_dispatch(x_RD: jax.Array, exchange: Exchange, rows: int, capacity: int) -> jax.Array:
    """The rows that arrive at this device, sorted by expert, `[S, D]`; `D` may be several dimensions.

    `all_to_all_dispatch` and `all_to_all_return` are transposes: the gradient of each is the other.

    Args:
        rows, capacity: `R` and `S`.
    """
    sends, receives = exchange
    if has_ragged_all_to_all():
        offsets = sends.sender_offsets, sends.sizes, sends.receiver_offsets
        return _ragged_all_to_all(x_RD, capacity, *offsets, receives.sizes)
    sent = _source_rows(sends.padded_offsets, sends.sender_offsets, sends.sizes, capacity, rows)
    x_XCD = _padded_all_to_all(x_RD[sent])
    by_expert = lambda x_P: x_P.reshape(jax.lax.axis_size(RULES.experts), -1).T.reshape(-1)  # noqa: E731
    chunks = map(by_expert, (receives.receiver_offsets, receives.padded_offsets, receives.sizes))
    return x_XCD[_source_rows(*chunks, capacity, capacity)]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def all_to_all_return(x_SD: jax.Array, exchange: Exchange, rows: int, capacity: int) -> jax.Array:
    """The rows of `all_to_all_dispatch` at their places on the devices that sent them, `[R, D]`."""
    sends, receives = exchange
    if has_ragged_all_to_all():
        offsets = receives.receiver_offsets, receives.sizes, receives.sender_offsets
        return _ragged_all_to_all(x_SD, rows, *offsets, sends.sizes)
    sent = _source_rows(receives.padded_offsets, receives.receiver_offsets, receives.sizes, capacity, capacity)
    x_XCD = _padded_all_to_all(x_SD[sent])
    return x_XCD[_source_rows(sends.sender_offsets, sends.padded_offsets, sends.sizes, rows, capacity)]


all_to_all_dispatch.defvjp(
    lambda x_RD, exchange, rows, capacity: (all_to_all_dispatch(x_RD, exchange, rows, capacity), exchange),
    lambda rows, capacity, exchange, cotangent: (all_to_all_return(cotangent, exchange, rows, capacity), None),
)
all_to_all_return.defvjp(
    lambda x_SD, exchange, rows, capacity: (all_to_all_return(x_SD, exchange, rows, capacity), exchange),
    lambda rows, capacity, exchange, cotangent: (all_to_all_dispatch(cotangent, exchange, rows, capacity), None),
)


def varying_over(x: jax.Array, *axes: str) -> jax.Array:
    """`x`, equal on all devices along these axes, as an array that may differ: its gradient is summed over them."""
    return jax.lax.pcast(x, axes, to="varying")


def _padded_all_to_all(x_SD):
    x_XCD = x_SD.reshape(jax.lax.axis_size(RULES.experts), -1, *x_SD.shape[1:])
    return jax.lax.all_to_all(x_XCD, RULES.experts, 0, 0, tiled=True).reshape(x_SD.shape)


def _source_rows(target_offsets_P, source_offsets_P, sizes_P, rows, sources):
    """For each of `rows` target rows its index among `sources` source rows; chunks in the order of their targets."""
    row = jnp.arange(rows)
    chunk = jnp.sum(row[:, None] >= target_offsets_P + sizes_P, axis=1).clip(max=target_offsets_P.size - 1)
    return (row + (source_offsets_P - target_offsets_P)[chunk]).clip(0, sources - 1)


def _ragged_all_to_all(x, rows, offsets, sizes, target_offsets, arriving):
    shape = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
    buffer = _uninitialized_buffer(shape, x, offsets)
    return jax.lax.ragged_all_to_all(x, buffer, offsets, sizes, target_offsets, arriving, axis_name=RULES.experts)


def _uninitialized_buffer(shape, *given):
    """An uninitialized array, made by a kernel without instructions.

    Each exchange needs its own output buffer, so the kernel takes inputs that only this exchange has. XLA moves
    `lax.empty`, which has no inputs, out of the loops over layers and rounds and copies it in each turn; it merges two
    buffers of equal inputs into one and then copies it.
    """
    from jax.experimental import pallas as pl  # 0.4 s that a CPU need not spend
    from jax.experimental.pallas import triton

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    specs = {"in_specs": [anywhere] * len(given), "out_specs": anywhere}
    specs = {"compiler_params": triton.CompilerParams()} if target_platform() == "gpu" else specs
    return pl.pallas_call(lambda *_: None, out_shape=shape, name=UNINITIALIZED, **specs)(*given)


def has_ragged_all_to_all() -> bool:
    """Whether one operation can send uneven numbers of rows between devices of the mesh; otherwise rows are padded.

    TPUs have it, but not v5e: its compiler refuses on 64 and 256 chips ("not supported in limited ICI routing
    settings", libtpu 0.0.50), where those of v5p and v6e don't. It compiles for GPUs that NVLink connects: a step of
    `8x7b` on 128 H100 then takes 2.9 GiB less, and 37 ms of the exchange are exposed instead of 147. No GPU has run it.
    An L4, and a GPU that we don't know, may have no access to another one's memory. XLA for a CPU does not compile
    `ragged-all-to-all` (JAX 0.10 and 0.12). Padded rows give the same numbers.
    """
    if target_platform() == "cpu" or (device := abstract_device()) is None:
        return False
    chip = of_kind(device.device_kind)
    return chip.ragged_exchange and (target_platform() == "tpu" or chip.gpu is not None)


def contiguous_row(width: int) -> tuple[int, ...]:
    """The shape of one row of that width for a gather or an exchange of single rows, so that it is contiguous.

    A TPU keeps `[rows, width]` in tiles of 8 rows; a single row of it has to be copied to tiles of 2.
    """
    return (8, width // 8) if target_platform() == "tpu" and width % (8 * 128) == 0 else (width,)
