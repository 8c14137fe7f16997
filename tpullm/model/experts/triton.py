"""The grouped matmul of an NVIDIA GPU, in Pallas (Triton), where XLA's own multiplies every row with every group.

A program computes one tile of rows and columns of the result for one group. A tile of rows with a border between groups
is visited once for each group in it, and each visit writes the rows of its own group, so the work is that of the rows
that exist (as in MegaBlocks, Gale et al. 2023). The gradient of a matrix is a sum over the rows of its group. XLA's
scheduler is told how long the kernel takes, or it would run no collective beside it.

Shapes: M rows, D and F input and output width, E groups; V visits; R rows, C columns and K summed numbers of a tile.
R, C and K are powers of two, as Triton needs them; what is beyond an array is masked.
"""

import contextlib
import math
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.experimental.xla_metadata import set_xla_metadata

from tpullm.hardware.chips import of_kind
from tpullm.model.mesh import abstract_device
from tpullm.model.platform import barrier_on_gpu, target_platform

NARROWEST = 16  # side of a tile that Triton multiplies
TOGETHER = 8  # tiles of rows whose programs run side by side, so that they read the same columns from the L2 cache

# Products in the type of the operands with float32 sums. In float32 a tensor core would round the operands to TF32.
_matmul = partial(triton.dot, allow_tf32=False)


class Tile(NamedTuple):
    """Of one program: `R`, `C`, `K`, and how many steps of its loop it loads ahead."""

    rows: int
    columns: int
    summed: int
    stages: int


# By the compiler it takes 96 KiB of the memory that the threads of a multiprocessor share on A100 and L4 and 144 on
# Hopper and later (an L4 has 99, an A100 163, the others 227), and with 8 warps it spills no register. No card has run
# it: that the largest such tile is the fastest is a guess.
BFLOAT16 = Tile(128, 256, 64, 3)
# In float32 there are no tensor cores.
FLOAT32 = Tile(64, 64, 16, 2)


@jax.custom_vjp
def triton_grouped_matmul(x_MD: jax.Array, weight_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`lax.ragged_dot`: rows `[M, F]` in the type of `x`. Rows beyond the groups are uninitialized and not read.

    Sums are in float32. The gradient of `x` is uninitialized in rows beyond the groups, too.

    Args:
        sizes_E: rows of each group, int32; their sum is at most M.
    """
    return _rows_matmul(x_MD, weight_EDF, sizes_E, transposed=False)


def _backward(saved, d_MF):
    x_MD, weight_EDF, sizes_E = saved
    # As in `linear.matmul`: XLA would put off the gradient of the matrices, and hold its inputs.
    dweight_EDF, d_MF = barrier_on_gpu((_weights_gradient(x_MD, d_MF, weight_EDF, sizes_E), d_MF))
    return _rows_matmul(d_MF, weight_EDF, sizes_E, transposed=True), dweight_EDF, None


triton_grouped_matmul.defvjp(lambda *given: (triton_grouped_matmul(*given), given), _backward)


def tile_visits(sizes_E: jax.Array, rows: int, tile: int) -> tuple[jax.Array, ...]:
    """The visits of a grouped matmul of `rows` rows, in tiles of `tile` rows, in their order.

    At most one for each tile and one more for each border between groups. The others come last and have no rows.

    Returns:
        `[V]` int32 each: the group, the first row of the tile, the first row of the group and the one after its last.
    """
    E, V = sizes_E.size, pl.cdiv(rows, tile) + sizes_E.size - 1
    ends_E = jnp.cumsum(sizes_E)
    begins_E = ends_E - sizes_E
    counts_E = jnp.where(sizes_E > 0, pl.cdiv(ends_E, tile) - begins_E // tile, 0)
    passed_E = jnp.cumsum(counts_E)
    visit_V = jnp.arange(V, dtype=jnp.int32)
    group_V = jnp.sum(visit_V[:, None] >= passed_E, axis=1, dtype=jnp.int32)
    needed_V, group_V = group_V < E, jnp.minimum(group_V, E - 1)
    within_V = visit_V - (passed_E - counts_E)[group_V]
    first_V = (begins_E[group_V] // tile + within_V) * tile
    return group_V, *(jnp.where(needed_V, x_V, 0) for x_V in (first_V, begins_E[group_V], ends_E[group_V]))


def _rows_matmul(x_MD, weight_EDF, sizes_E, transposed: bool):
    """Each row times the matrix of its group, or with `transposed` times its transpose."""
    rows, inputs = x_MD.shape
    outputs = weight_EDF.shape[1 if transposed else 2]
    tile = _tile_for(x_MD.dtype, rows, outputs, inputs)
    visits = tile_visits(sizes_E, rows, tile.rows)
    size = visits[0].size, pl.cdiv(outputs, tile.columns)
    kernel, flops = partial(_rows_kernel, tile, size, transposed), 2 * rows * inputs * outputs
    arrays = (*visits, x_MD, weight_EDF)
    return _run_kernel("grouped_matmul", kernel, tile, math.prod(size), (rows, outputs), x_MD, flops, arrays)


def _weights_gradient(x_MD, d_MF, weight_EDF, sizes_E):
    """The gradient of the matrices: of each group the sum over its rows, 0 of an empty one."""
    rows, (E, D, F) = x_MD.shape[0], weight_EDF.shape
    tile = _tile_for(x_MD.dtype, D, F, rows)
    size, ends_E = (pl.cdiv(D, tile.rows), pl.cdiv(F, tile.columns)), jnp.cumsum(sizes_E)
    begins_E = ends_E - sizes_E
    programs, arrays = E * math.prod(size), (begins_E, ends_E, x_MD, d_MF)
    kernel, flops = partial(_weights_kernel, tile, size), 2 * rows * D * F
    return _run_kernel("grouped_matmul_weights", kernel, tile, programs, (E, D, F), weight_EDF, flops, arrays)


def _run_kernel(name: str, kernel, tile: Tile, programs: int, shape, like: jax.Array, flops: int, arrays):
    """The array of this `shape`, in the type of `like`, that so many programs of a kernel make.

    XLA's scheduler is told how long the kernel takes, if the GPU's speed is known. It takes a kernel for a short one
    otherwise, and has no collective run beside it: of a step of `8x7b` on 128 H100 with 8 devices along `expert`, 1.08
    s of all-gathers were exposed instead of 0.54.
    """
    call = pl.pallas_call(
        kernel,
        grid=(programs,),
        out_shape=jax.ShapeDtypeStruct(shape, like.dtype, manual_axis_type=jax.typeof(like).manual_axis_type),
        name=name,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=tile.stages),
        interpret=target_platform() == "cpu",  # in tests
    )
    chip = of_kind(abstract_device().device_kind)
    speed = chip.peak_flops * chip.matmul_efficiency * chip.grouped_efficiency
    told = set_xla_metadata(latency_metadata=str(round(1e9 * flops / speed))) if speed else contextlib.nullcontext()
    with told:
        return call(*arrays)


def _tile_for(dtype: jnp.dtype, rows: int, columns: int, summed: int) -> Tile:
    """The tile of arrays in that type; a smaller one if they are smaller."""
    largest = FLOAT32 if dtype == jnp.float32 else BFLOAT16
    sides = zip(largest[:3], (rows, columns, summed), strict=True)
    return Tile(*(min(side, max(NARROWEST, pl.next_power_of_2(size))) for side, size in sides), largest.stages)


def _rows_kernel(tile, size, transposed, group_ref, first_ref, begin_ref, end_ref, x_ref, weight_ref, out_ref):
    (rows, inputs), outputs = x_ref.shape, out_ref.shape[1]
    visit, column = _tile_of_program(pl.program_id(0), size)
    group, first, begin, end = (ref[visit] for ref in (group_ref, first_ref, begin_ref, end_ref))
    row_R, at_rows = _tile_indices(first, tile.rows)
    column_C, at_columns = _tile_indices(column * tile.columns, tile.columns)

    def add(step, total_RC):
        inner_K, at_inner = _tile_indices(step * tile.summed, tile.summed)
        of_rows, of_columns, of_inner = _in_bound(row_R, rows), _in_bound(column_C, outputs), _in_bound(inner_K, inputs)
        x_RK = _load_tile(x_ref.at[at_rows, at_inner], of_rows, of_inner)
        if transposed:
            weight_CK = _load_tile(weight_ref.at[group, at_columns, at_inner], of_columns, of_inner)
            return total_RC + _matmul(x_RK, weight_CK, trans_b=True)
        weight_KC = _load_tile(weight_ref.at[group, at_inner, at_columns], of_inner, of_columns)
        return total_RC + _matmul(x_RK, weight_KC)

    steps = jnp.where(begin < end, jnp.int32(pl.cdiv(inputs, tile.summed)), jnp.int32(0))
    total_RC = jax.lax.fori_loop(jnp.int32(0), steps, add, jnp.zeros((tile.rows, tile.columns), jnp.float32))
    own_R = (row_R >= begin) & (row_R < end)  # other rows of the tile belong to other visits
    _store_tile(out_ref.at[at_rows, at_columns], total_RC, own_R, _in_bound(column_C, outputs))


def _weights_kernel(tile, size, begin_ref, end_ref, x_ref, d_ref, out_ref):
    _, D, F = out_ref.shape
    group = jax.lax.div(pl.program_id(0), math.prod(size))
    row, column = _tile_of_program(pl.program_id(0) - group * math.prod(size), size)
    begin, end = begin_ref[group], end_ref[group]
    row_R, at_rows = _tile_indices(row * tile.rows, tile.rows)
    column_C, at_columns = _tile_indices(column * tile.columns, tile.columns)
    of_rows, of_columns = _in_bound(row_R, D), _in_bound(column_C, F)

    def add(step, total_RC):
        inner_K, at_inner = _tile_indices(step * tile.summed, tile.summed)
        own_K = (inner_K >= begin) & (inner_K < end)  # of both: a row of another group may hold NaN
        x_KR = _load_tile(x_ref.at[at_inner, at_rows], own_K, of_rows)
        d_KC = _load_tile(d_ref.at[at_inner, at_columns], own_K, of_columns)
        return total_RC + _matmul(x_KR, d_KC, trans_a=True)

    stop = jnp.where(begin < end, pl.cdiv(end, tile.summed), jnp.int32(0))
    start, zeros_RC = jax.lax.div(begin, tile.summed), jnp.zeros((tile.rows, tile.columns), jnp.float32)
    total_RC = jax.lax.fori_loop(start, stop, add, zeros_RC)
    _store_tile(out_ref.at[group, at_rows, at_columns], total_RC, of_rows, of_columns)


def _tile_of_program(program, size):
    """Which of `size` tiles of rows and columns a program computes: `TOGETHER` tiles of rows, column by column."""
    rows, columns = size
    band = jax.lax.div(program, TOGETHER * columns)
    within, height = program - band * TOGETHER * columns, jnp.minimum(rows - band * TOGETHER, TOGETHER)
    return band * TOGETHER + jax.lax.rem(within, height), jax.lax.div(within, height)


def _tile_indices(first, count: int):
    return first + jnp.arange(count), pl.ds(first, count)


def _in_bound(index, size: int):
    """Which of these indices an array of that size has; None is all."""
    return None if size % index.size == 0 else index < size


def _load_tile(ref, of_rows, of_columns):
    """A block, with zeros where it has no such row or column."""
    mask = _tile_mask(of_rows, of_columns)
    return triton.load(ref, mask=mask, other=None if mask is None else 0.0)


def _store_tile(ref, x_RC, of_rows, of_columns):
    triton.store(ref, x_RC.astype(ref.dtype), mask=_tile_mask(of_rows, of_columns))


def _tile_mask(of_rows, of_columns):
    sides = [of_rows is not None and of_rows[:, None], of_columns is not None and of_columns[None]]
    masks = [side for side in sides if side is not False]
    return reduce(jnp.logical_and, masks) if masks else None
