"""Collectives over a whole TPU slice in steps, one along each dimension of its torus."""

import math

import jax
import numpy as np

from tpullm.hardware.chips import of_kind
from tpullm.mesh.layout import abstract_device


def steps(axis: str, planes: bool = False) -> list:
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
    sizes = _factors(size, dimensions) if size == mesh.size else [size]
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


def _factors(size: int, dimensions: int) -> list[int]:
    """The most even factors of a number of devices, without 1: 1,024 in 3 dimensions is 8 x 8 x 16."""
    if dimensions == 1:
        return [size]
    least = max(divisor for divisor in range(1, size + 1) if size % divisor == 0 and divisor**dimensions <= size)
    return [*([least] if least > 1 else []), *_factors(size // least, dimensions - 1)]
