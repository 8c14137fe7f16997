"""A frozen matrix in 8 or 4 bits: codes, and a scale for each block of 64 inputs (QLoRA, Dettmers et al. 2023).

`Quantized` stands in the tree of parameters where the matrix stood, and is split over devices as the matrix was. Where
the matrix is used, its codes are all-gathered, which are fewer bytes, and dequantized. The backward pass gathers and
dequantizes again, behind a barrier, so no numbers are kept. Only matrices that are not trained can be quantized: there
is no gradient. Codes are always made from the numbers of the checkpoint, so resuming, merging and using an adapter find
the same codes.

An adapter is tuned beside `int8`, `fp8` or `nf4`; a model in use has `int8` or `int4`, which other programs read too.
docs/design/libraries.md says why qwix is not used.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.model.collectives import all_gather, all_gather_local
from tpullm.model.mesh import RULES
from tpullm.model.platform import is_older_cpu, target_platform

Tree = Any
BLOCK = 64  # inputs that have one scale; fewer if 64 does not divide a matrix's inputs
# The last of the inputs among the dimensions of a matrix, by the name of its module: blocks go along it. These are the
# matrices that are quantized; a router, the embedding, the output head and vectors stay as they are.
INPUTS = {"query": -3, "key": -3, "value": -3, "out": -2, "gate": -2, "up": -2, "down": -2}
# The quantiles of a normal distribution that 4-bit codes stand for (Dettmers et al. 2023, appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
# The type of the codes, and the number that the largest of a block becomes. Of `int4` it rounds to 7: the steps are 7 %
# finer than if it were 7, and no number is further than half a step from its code.
KINDS = {
    "int8": (jnp.int8, 127.0),
    "fp8": (jnp.float8_e4m3fn, 448.0),
    "nf4": (jnp.uint8, 1.0),
    "int4": (jnp.uint8, 7.49),
}
FOUR_BITS = ("nf4", "int4")  # two codes in a byte
IN_USE = ("int8", "int4")  # the kinds that a model may be opened and exported in


@partial(jax.tree_util.register_dataclass, data_fields=("codes", "scales"), meta_fields=("kind", "axis"))
@dataclass(frozen=True)
class Quantized:
    """A matrix, or several stacked.

    Args:
        codes: of the matrix's shape; in 4 bits two in a byte, so half as many along `axis`. The low half of a byte is
            of the first half of its block. Those of `int4` are -7 to 7 plus 8.
        scales: float32, of the matrix's shape with one number for each block along `axis`.
        kind: one of `KINDS`.
        axis: the dimension along which the blocks are, counted from the end.
    """

    codes: jax.Array
    scales: jax.Array
    kind: str
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        inputs = self.codes.shape[self.axis] * (2 if self.kind in FOUR_BITS else 1)
        return _resize_axis(self.codes.shape, self.axis, inputs)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the matrix, before it was rounded and after."""
        return jnp.dtype("float32")

    def __getitem__(self, all_of_it) -> "Quantized":
        """As an array's `[...]`, by which a module reads its parameter."""
        assert all_of_it is Ellipsis
        return self


def is_quantized(node: Any) -> bool:
    """Whether the node of a tree is a quantized matrix."""
    return isinstance(node, Quantized)


def inputs_per_scale(inputs: int) -> int:
    """How many of a matrix's inputs have one scale."""
    return math.gcd(BLOCK, inputs)


def gathered_matrix(weight: jax.Array | Quantized, *dimensions: str | None, dtype: jnp.dtype) -> jax.Array:
    """`collectives.all_gather`, of a quantized matrix too."""
    if not is_quantized(weight):
        return all_gather(weight, *dimensions, dtype=dtype)
    used = RULES.spec(*[None if dimension == "embed" else dimension for dimension in dimensions])
    local = lambda weight: gathered_local_matrix(weight, *dimensions, dtype=dtype)  # noqa: E731
    return jax.shard_map(local, out_specs=used, check_vma=False)(weight)


def gathered_local_matrix(weight: Quantized, *dimensions: str | None, dtype: jnp.dtype) -> jax.Array:
    """The same of a device's own shard, inside `jax.shard_map`."""
    if "embed" in dimensions:
        weight = jax.tree.map(lambda part: all_gather_local(part, *dimensions), weight)
    return _dequantize_local(weight, dtype)


def dequantize_after(weights: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
    """A layer with quantized matrices and what it reads, such that their numbers are made after `x` is.

    A compiler would otherwise make those of all layers before the first matmul: the engine's step of 32 texts took
    19 MB of its own on a CPU, and 1 with a barrier at each matmul (10 M parameters in int8, JAX 0.12). JAX 0.10 forgets
    a barrier on a CPU before it puts operations in order, so there the scales are computed of `x`.
    """
    if is_older_cpu() and jax.sharding.get_abstract_mesh().size == 1:
        zero = (x[(0,) * x.ndim] > jnp.inf).astype(jnp.float32)  # also if `x` has a NaN
        after = lambda leaf: dataclasses.replace(leaf, scales=leaf.scales + zero) if is_quantized(leaf) else leaf  # noqa: E731
        weights = jax.tree.map(after, weights, is_leaf=is_quantized)
    return jax.lax.optimization_barrier((weights, x))


def dequantized(weight: jax.Array | Quantized, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The matrix, sharded as it is at rest."""
    if not is_quantized(weight):
        return weight.astype(dtype)
    local = partial(_dequantize_local, dtype=dtype)
    return jax.shard_map(local, out_specs=jax.typeof(weight.codes).sharding.spec, check_vma=False)(weight)


def quantized(weight: jax.Array, kind: str, axis: int) -> Quantized:
    """A matrix as codes and scales, sharded as it is. A shard has whole blocks (`mesh_fit.check_quantized`)."""
    spec, block = jax.typeof(weight).sharding.spec, inputs_per_scale(weight.shape[axis])
    (dtype, most), at = KINDS[kind], weight.ndim + axis

    def local(weight: jax.Array) -> Quantized:
        blocks = weight.astype(jnp.float32).reshape(*weight.shape[:at], -1, block, *weight.shape[at + 1 :])
        largest = jnp.max(jnp.abs(blocks), axis=at + 1)
        scales = largest * jnp.float32(1 / most)  # a compiler may make this of a division; so all of them do the same
        numbers = blocks / jnp.expand_dims(jnp.where(scales > 0, scales, 1.0), at + 1)
        if kind == "nf4":
            # The nearest: each is between two of the middles between neighbours.
            codes = sum((numbers > middle).astype(dtype) for middle in (NF4[1:] + NF4[:-1]) / 2)
        elif kind == "int4":
            codes = (jnp.round(numbers) + 8).astype(dtype)
        else:
            codes = (jnp.round(numbers) if kind == "int8" else numbers.clip(-most, most)).astype(dtype)
        if kind in FOUR_BITS:
            low, high = jnp.split(codes, 2, axis=at + 1)
            codes = low | (high << 4)
        return Quantized(codes.reshape(*weight.shape[:at], -1, *weight.shape[at + 1 :]), scales, kind, axis)

    return jax.shard_map(local, out_specs=Quantized(spec, spec, kind, axis), check_vma=False)(weight)


quantize = jax.jit(quantized, static_argnums=(1, 2))


def from_blocks(codes: np.ndarray, scales: np.ndarray, target: Quantized) -> Quantized:
    """A matrix of others whose codes, one in a byte, and scales are known.

    Args:
        codes, scales: of the matrix's shape; a block has the same scale.
        target: its kind, axis and number of blocks.
    """
    at, blocks = codes.ndim + target.axis, target.scales.shape[target.axis]
    if target.kind in FOUR_BITS:
        low, high = np.split(codes.reshape(*codes.shape[:at], blocks, -1, *codes.shape[at + 1 :]), 2, axis=at + 1)
        codes = (low | high << 4).reshape(*codes.shape[:at], -1, *codes.shape[at + 1 :])
    first = scales[(*[slice(None)] * at, slice(None, None, scales.shape[at] // blocks))]
    return Quantized(codes, first, target.kind, target.axis)


def change_each_matrix(tree: Tree, change: Callable[[Any, int], Any], name: str = "") -> Tree:
    """The tree with each matrix that is quantized changed: `change(matrix, axis)`.

    Args:
        tree: of the parameters of a model, or a part of it with the same paths.
        name: of the tree in its parent.
    """
    if not isinstance(tree, dict):
        return tree
    if name in INPUTS and "weight" in tree:
        return tree | {"weight": change(tree["weight"], INPUTS[name])}
    return {key: change_each_matrix(below, change, key) for key, below in tree.items()}


def packed_targets(shapes: Tree, kind: str) -> Tree:
    """Shapes, types and shardings of parameters, with those of quantized matrices in place of matrices.

    Args:
        kind: one of `KINDS`; "" changes nothing.
    """
    if not kind:
        return shapes

    return change_each_matrix(shapes, lambda matrix, axis: packed_target(matrix, kind, axis))


def packed_target(
    matrix: jax.ShapeDtypeStruct, kind: str, axis: int, block: int = 0, scales: jnp.dtype = jnp.float32
) -> Quantized:
    """The shapes, types and shardings of a matrix once it is quantized.

    Args:
        matrix: before that.
        kind: one of `KINDS`.
        axis: of the inputs, from the end: below 0.
        block: inputs that have one scale; 0 is `inputs_per_scale`.
        scales: the type of scales.
    """
    inputs, (dtype, _) = matrix.shape[axis], KINDS[kind]
    resized, of = partial(_resize_axis, matrix.shape, axis), partial(jax.ShapeDtypeStruct, sharding=matrix.sharding)
    codes = of(resized(inputs // 2 if kind in FOUR_BITS else inputs), dtype)
    return Quantized(codes, of(resized(inputs // (block or inputs_per_scale(inputs))), scales), kind, axis)


def rounded_matrices(params: Tree, kind: str) -> Tree:
    """Parameters with each matrix as the numbers, float32, that a model with quantized matrices multiplies with."""
    if not kind:
        return params
    return change_each_matrix(params, lambda matrix, axis: dequantized(quantized(matrix, kind, axis)))


def _resize_axis(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[len(shape) + axis + 1 :])


def _dequantize_local(weight: Quantized, dtype: jnp.dtype) -> jax.Array:
    """The numbers of a whole matrix, or of a shard of one: computed in float32, then rounded to `dtype`."""
    codes, at = weight.codes, weight.codes.ndim + weight.axis
    before, after = codes.shape[:at], codes.shape[at + 1 :]
    codes = codes.reshape(*before, weight.scales.shape[at], -1, *after)
    if weight.kind in FOUR_BITS:
        codes = jnp.concatenate([codes & 15, codes >> 4], axis=at + 1)
    numbers = _nf4_entries(codes) if weight.kind == "nf4" else codes.astype(jnp.float32)
    if weight.kind == "int4":
        numbers -= 8
    return (numbers * jnp.expand_dims(weight.scales, at + 1)).astype(dtype).reshape(*before, -1, *after)


def _nf4_entries(codes: jax.Array) -> jax.Array:
    """The entries of `NF4`.

    By halving the table with each bit: a TPU has no instruction that reads a table. A GPU has, and XLA for GPUs would
    write each half to memory: 8 GiB more of `8b-qlora`.
    """
    if target_platform() == "gpu":
        return jnp.asarray(NF4).at[codes].get(mode="promise_in_bounds")
    table: list[Any] = list(NF4)
    for bit in range(4):
        is_set = (codes >> bit) & 1 > 0
        table = [jnp.where(is_set, high, low) for low, high in zip(table[::2], table[1::2], strict=True)]
    return table[0]
