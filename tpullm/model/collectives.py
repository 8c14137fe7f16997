"""All-gather a parameter where it is used, and reduce-scatter its gradient to where the parameter rests.

Both are written by hand, in `jax.shard_map`: the compiler would all-reduce gradients and then slice them, twice the
bytes. The matmul of `linear.py`, the embedding, the loss and the experts are built on the two.

Over a whole TPU slice both go in steps, one along each dimension of its torus (reduce-scatters over two dimensions at
once where there are three), since XLA makes all-reduces of them otherwise. On GPUs they go in one step: NCCL itself
uses NVLink and all network cards of a host at once.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.hardware.chips import of_kind
from tpullm.model.mesh import RULES, abstract_device, axis_size, unstacked_axes
from tpullm.model.platform import row_major


def reduce_scatter_steps(axis: str, planes: bool = False) -> list:
    """The `axis_index_groups` of each step of a reduce-scatter along a mesh axis; an all-gather has the reverse order.

    [None] is one step, over all devices of the axis: always on GPUs, whose network is no torus. There are several if
    the axis is the whole mesh: one along the lines of each dimension of the torus. Over all devices of a slice, XLA for
    a TPU turns a reduce-scatter into an all-reduce and a slice, which is twice the bytes, and all-gathers of less than
    some 10 MB into an all-reduce of mostly zeros; over a part of them it does not (libtpu 0.0.50, on v5e, v6e and v5p).
    And the SparseCores, which run collectives during matmuls (`platform.compiler_options`), all-gather along lines
    only.

    Args:
        planes: in a torus of three dimensions, the first step goes over two of them and uses the links of both.
            SparseCores can do that for reduce-scatters (70 B on v5p 8x8x8: 157 ms are exposed, and 411 along lines).
    """
    size, mesh = jax.lax.axis_size(axis), jax.sharding.get_abstract_mesh()
    chip = of_kind(abstract_device().device_kind)
    dimensions = 1 if chip.gpu else chip.slices.dimensions if chip.slices else 2
    sizes = [size]
    if size == mesh.size:  # the devices of a chip are in one line of the first dimension: see `mesh.arrange_devices`
        first, *others = torus_factors(size // chip.devices_per_chip, dimensions)
        sizes = [first * chip.devices_per_chip, *others]
    return line_groups(sizes, 2 if planes and len(sizes) == 3 else 1) if len(sizes) > 1 else [None]


def line_groups(sizes: list[int], first: int = 1) -> list[list[list[int]]]:
    """For each dimension of a grid of devices in row-major order, the groups of devices along its lines.

    Args:
        sizes: of the grid.
        first: the first so many dimensions count as one.
    """
    merged = [math.prod(sizes[:first]), *sizes[first:]]
    grid = np.arange(math.prod(merged)).reshape(merged)
    return [np.moveaxis(grid, n, -1).reshape(-1, length).tolist() for n, length in enumerate(merged)]


def torus_factors(size: int, dimensions: int) -> list[int]:
    """The most even factors of a number of devices, without 1: 1,024 in 3 dimensions is 8 x 8 x 16."""
    if dimensions == 1:
        return [size]
    least = max(divisor for divisor in range(1, size + 1) if size % divisor == 0 and divisor**dimensions <= size)
    return [*([least] if least > 1 else []), *torus_factors(size // least, dimensions - 1)]


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
    for groups in reversed(reduce_scatter_steps(RULES.embed)):
        flat = gather(flat, axis_index_groups=groups)
    return _embed_back(row_major(flat), shape, order)


def reduce_gradient(x: jax.Array, *dimensions: str | None, over: tuple[str, ...]) -> jax.Array:
    """This device's shard of a parameter's gradient, from what each device computed of it; inside `jax.shard_map`.

    A reduce-scatter along `embed`, then an all-reduce of the shard alone over the other mesh axes of `over`.

    The TPU compiler tiles a wide array by a divisor: it turns a reduce-scatter of 128,256 columns (1,002 tiles of 128)
    into an all-reduce, but not one of 128,000, 129,024 or 130,944. So an array as wide as a vocabulary is cut after the
    last multiple of 1,024.
    """
    if "embed" in dimensions and RULES.embed in over:
        # On one device, `_embed_first` and `_embed_back` would cost a CPU a third of its step.
        if jax.lax.axis_size(RULES.embed) > 1:
            flat, shape, order = _embed_first(x, dimensions)
            width, even, at = flat.shape[-1], flat.shape[-1] // 1024 * 1024, flat.ndim - 2
            parts = jnp.split(flat, [even] if width > 1 << 16 and even < width else [], axis=-1)
            for groups in reduce_scatter_steps(RULES.embed, planes=True):
                scatter = partial(jax.lax.psum_scatter, axis_index_groups=groups, scatter_dimension=at, tiled=True)
                parts = [scatter(part, RULES.embed) for part in parts]
            x = _embed_back(jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0], shape, order)
        over = tuple(axis for axis in over if axis != RULES.embed)
    return jax.lax.psum(x, over) if over else x


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
    return row_major(turned.reshape(*turned.shape[: stacked + 1], -1)), turned.shape, order


def _embed_back(flat: jax.Array, shape: tuple[int, ...], order: list[int]) -> jax.Array:
    """The inverse of `_embed_first`, for any size of `embed`."""
    stacked = flat.ndim - 2
    turned = flat.reshape(*shape[:stacked], flat.shape[-2], *shape[stacked + 1 :])
    return turned.transpose([order.index(n) for n in range(len(order))])
