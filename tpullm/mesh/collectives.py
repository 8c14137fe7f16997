"""All-gather a parameter where a matmul uses it, and reduce-scatter its gradient, in steps along the torus."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from tpullm.hardware.chips import of_kind
from tpullm.mesh.layout import RULES, Rules, abstract_device, axis_size, unstacked_axes


def all_gather(parameter: jax.Array, *dimensions: str | None, dtype: jnp.dtype, rules: Rules = RULES) -> jax.Array:
    """A parameter as its use needs it: cast to `dtype`, then whole along `embed` (FSDP's all-gather, in few bytes)."""
    used = rules.spec(*[None if dimension == "embed" else dimension for dimension in dimensions])
    if "embed" not in dimensions or axis_size(rules.embed) == 1:
        return jax.reshard(parameter.astype(dtype), used)
    local = lambda x: all_gather_local(x.astype(dtype), *dimensions, rules=rules)  # noqa: E731
    return jax.shard_map(local, out_specs=used, check_vma=False)(parameter)


def all_gather_local(x: jax.Array, *dimensions: str | None, rules: Rules = RULES) -> jax.Array:
    """`gather`, of a device's own part; inside `jax.shard_map`."""
    if jax.lax.axis_size(rules.embed) == 1:
        return x
    flat, shape, order = _embed_first(x, dimensions)
    gather = partial(jax.lax.all_gather, axis_name=rules.embed, axis=flat.ndim - 2, tiled=True)
    for groups in reversed(_steps(rules.embed)):
        flat = gather(flat, axis_index_groups=groups)
    return _embed_back(_laid_out(flat), shape, order)


def _steps(axis: str, planes: bool = False) -> list:
    """The groups of devices of a gather or, in this order, of a scatter along a mesh axis: [None] is one step.

    In steps where the axis is the whole mesh: one along the lines of each dimension of the torus. Over all devices, XLA
    for a TPU makes a reduce-scatter an all-reduce and a slice, twice the bytes, and of gathers of less than some 10 MB
    an all-reduce of mostly zeros; over a part of them it does not (libtpu 0.0.50, on v5e, v6e and v5p). And the small
    cores that work beside the products (`platform.compiler_options`) gather along lines only.

    Args:
        planes: where the torus has three dimensions, the first step goes over two, with the links of both: scatters do
            that beside the products too (70 B on v5p 8x8x8: 157 ms are waited for, and 411 along lines).
    """
    size, mesh = jax.lax.axis_size(axis), jax.sharding.get_abstract_mesh()
    slices = of_kind(abstract_device().device_kind).slices
    lines = _lines(size, slices.dimensions if slices else 2) if size == mesh.size else [size]
    return line_groups(lines, 2 if planes and len(lines) == 3 else 1) if len(lines) > 1 else [None]


def line_groups(lines: list[int], first: int = 1) -> list[list[list[int]]]:
    """For each dimension of a grid of so many devices, in the order of their numbers, the groups along its lines.

    Args:
        first: so many dimensions are taken together, as one.
    """
    sizes = [math.prod(lines[:first]), *lines[first:]]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return [np.moveaxis(grid, n, -1).reshape(-1, length).tolist() for n, length in enumerate(sizes)]


def _lines(size: int, dimensions: int) -> list[int]:
    """A number of devices as an even product of so many factors: 1,024 in 3 dimensions is 8 x 8 x 16. None is 1."""
    if dimensions == 1:
        return [size]
    least = max(divisor for divisor in range(1, size + 1) if size % divisor == 0 and divisor**dimensions <= size)
    return [*([least] if least > 1 else []), *_lines(size // least, dimensions - 1)]


def _laid_out(x: jax.Array) -> jax.Array:
    """`x`, in memory as its dimensions say."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _embed_first(x: jax.Array, dimensions: tuple[str | None, ...]) -> tuple[jax.Array, tuple[int, ...], list[int]]:
    """A parameter as `[..., embed, the rest]`; `...` are the dimensions that stack parameters.

    The TPU compiler gathers and scatters along a dimension that is not the last in memory. Weights of heads of 64 it
    lays out with the width last; then each gather became an all-reduce of mostly zeros (1 B parameters on v5e).

    Returns:
        What is needed to go back with `_embed_back` too: the shape with `embed` first, and the order of dimensions.
    """
    stacked = len(dimensions) - len(unstacked_axes(dimensions))
    embed = dimensions.index("embed")
    order = [*range(stacked), embed, *[n for n in range(stacked, x.ndim) if n != embed]]
    turned = x.transpose(order)
    return _laid_out(turned.reshape(*turned.shape[: stacked + 1], -1)), turned.shape, order


def _embed_back(flat: jax.Array, shape: tuple[int, ...], order: list[int]) -> jax.Array:
    """The opposite of `_embed_first`, whatever the size of `embed` has become."""
    stacked = flat.ndim - 2
    turned = flat.reshape(*shape[:stacked], flat.shape[-2], *shape[stacked + 1 :])
    return turned.transpose([order.index(n) for n in range(len(order))])


def reduce_gradient(x: jax.Array, *dimensions: str | None, over: tuple[str, ...], rules: Rules = RULES) -> jax.Array:
    """The gradient of a parameter from what each device computed of it; inside `jax.shard_map`.

    Each device is left with its own part: a reduce-scatter along `embed`, then an all-reduce of that part alone over
    the rest of the mesh axes `over`.
    """
    if "embed" in dimensions and rules.embed in over:
        # On one device the way there and back would cost a CPU a third of its step.
        if jax.lax.axis_size(rules.embed) > 1:
            flat, shape, order = _embed_first(x, dimensions)
            x = _embed_back(_scattered(flat, rules.embed, flat.ndim - 2), shape, order)
        over = tuple(axis for axis in over if axis != rules.embed)
    return jax.lax.psum(x, over) if over else x


def _scattered(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """Sum over a mesh axis, each device left with its part along `dimension`, which is not the last."""
    parts = jnp.split(x, _cut(x.shape[-1]), axis=-1)
    for groups in _steps(axis, planes=True):
        scatter = partial(jax.lax.psum_scatter, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
        parts = [scatter(part, axis) for part in parts]
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _cut(width: int) -> list[int]:
    """Where to cut what is as wide as a vocabulary for a scatter: what is odd goes by itself.

    The TPU compiler tiles what is wide by a divisor: it makes an all-reduce of a scatter of 128,256 columns (1,002
    tiles of 128), and not of one of 128,000, 129,024 or 130,944.
    """
    even = width // 1024 * 1024
    return [even] if width > 1 << 16 and even < width else []
