"""All-gather a parameter where it is used, and reduce-scatter its gradient to where the parameter rests."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from tpullm.mesh import torus
from tpullm.mesh.layout import RULES, axis_size, unstacked_axes


def all_gather(parameter: jax.Array, *dimensions: str | None, dtype: jnp.dtype) -> jax.Array:
    """A parameter for its use: cast to `dtype` first, so that fewer bytes move, then whole along `embed` (FSDP)."""
    used = RULES.spec(*[None if dimension == "embed" else dimension for dimension in dimensions])
    if "embed" not in dimensions or axis_size(RULES.embed) == 1:
        return jax.reshard(parameter.astype(dtype), used)
    local = lambda x: all_gather_local(x.astype(dtype), *dimensions)  # noqa: E731
    return jax.shard_map(local, out_specs=used, check_vma=False)(parameter)


def all_gather_local(x: jax.Array, *dimensions: str | None) -> jax.Array:
    """`all_gather` of a device's own shard; inside `jax.shard_map`."""
    if jax.lax.axis_size(RULES.embed) == 1:
        return x
    flat, shape, order = _embed_first(x, dimensions)
    gather = partial(jax.lax.all_gather, axis_name=RULES.embed, axis=flat.ndim - 2, tiled=True)
    for groups in reversed(torus.steps(RULES.embed)):
        flat = gather(flat, axis_index_groups=groups)
    return _embed_back(_row_major(flat), shape, order)


def reduce_gradient(x: jax.Array, *dimensions: str | None, over: tuple[str, ...]) -> jax.Array:
    """This device's shard of a parameter's gradient, from what each device computed of it; inside `jax.shard_map`.

    A reduce-scatter along `embed`, then an all-reduce of the shard alone over the other mesh axes of `over`.
    """
    if "embed" in dimensions and RULES.embed in over:
        # On one device, `_embed_first` and `_embed_back` would cost a CPU a third of its step.
        if jax.lax.axis_size(RULES.embed) > 1:
            flat, shape, order = _embed_first(x, dimensions)
            x = _embed_back(_reduce_scatter(flat, RULES.embed, flat.ndim - 2), shape, order)
        over = tuple(axis for axis in over if axis != RULES.embed)
    return jax.lax.psum(x, over) if over else x


def _reduce_scatter(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """Sum over a mesh axis and keep this device's part along `dimension`, which is not the last."""
    parts = jnp.split(x, _split_point(x.shape[-1]), axis=-1)
    for groups in torus.steps(axis, planes=True):
        scatter = partial(jax.lax.psum_scatter, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
        parts = [scatter(part, axis) for part in parts]
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _split_point(width: int) -> list[int]:
    """Where a reduce-scatter cuts an array as wide as a vocabulary: after the last multiple of 1,024.

    The TPU compiler tiles a wide array by a divisor: it turns a reduce-scatter of 128,256 columns (1,002 tiles of 128)
    into an all-reduce, but not one of 128,000, 129,024 or 130,944.
    """
    even = width // 1024 * 1024
    return [even] if width > 1 << 16 and even < width else []


def _row_major(x: jax.Array) -> jax.Array:
    """`x` with its dimensions in memory in their logical order."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _embed_first(x: jax.Array, dimensions: tuple[str | None, ...]) -> tuple[jax.Array, tuple[int, ...], list[int]]:
    """A parameter as `[..., embed, the rest]`; `...` are the dimensions that stack parameters.

    The TPU compiler gathers and scatters along a dimension that is not the last in memory. It lays out weights of heads
    of 64 with the width last; then each all-gather became an all-reduce of mostly zeros (1 B parameters on v5e).

    Returns:
        Also what `_embed_back` needs: the shape with `embed` first, and the order of dimensions.
    """
    stacked = len(dimensions) - len(unstacked_axes(dimensions))
    embed = dimensions.index("embed")
    order = [*range(stacked), embed, *[n for n in range(stacked, x.ndim) if n != embed]]
    turned = x.transpose(order)
    return _row_major(turned.reshape(*turned.shape[: stacked + 1], -1)), turned.shape, order


def _embed_back(flat: jax.Array, shape: tuple[int, ...], order: list[int]) -> jax.Array:
    """The inverse of `_embed_first`, for any size of `embed`."""
    stacked = flat.ndim - 2
    turned = flat.reshape(*shape[:stacked], flat.shape[-2], *shape[stacked + 1 :])
    return turned.transpose([order.index(n) for n in range(len(order))])
