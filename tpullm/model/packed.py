"""Matrices in the order in which a CPU's matmul of few rows reads them: bfloat16, or integers with scales.

`Packed` stands in the tree of parameters where the matrix or the `Quantized` stood. Codes and scales are those of the
`Quantized`, or of a GGUF file; rows are rounded to 8 bits when they are multiplied with integers, as in llama.cpp.

A CPU of one device only; elsewhere XLA's own matmuls are used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tpullm.model import cpu_kernels
from tpullm.model.platform import LANES

UNIT = 32  # inputs that lie together, for 16 outputs
BITS = {"bfloat16": 16, "int8": 8, "int4": 4}


@partial(jax.tree_util.register_dataclass, data_fields=("codes", "scales"), meta_fields=("kind", "inputs", "outputs"))
@dataclass(frozen=True)
class Packed:
    """A matrix `[*inputs, *outputs]`, or several stacked.

    Args:
        codes: `[tiles, units, codes of a unit]`. A tile is 16 outputs; the last one is filled with zeros. A unit is 32
            inputs of them, in this order (the last index changes fastest):

            kind        type        order                       input                   a code is
            bfloat16    bfloat16    [16, 16 outputs, 2]         2 * first + last        the number
            int8        uint8       [8, 16 outputs, 4]          4 * first + last        the integer plus 128
            int4        uint8       [4, 16 outputs, 4]          4 * first + last: low   two integers plus 8, of 4 bits
                                                                half; plus 16: high
        scales: `[tiles, blocks, 16]` float16 or float32; None for bfloat16.
        kind: one of `BITS`.
    """

    codes: jax.Array
    scales: jax.Array | None
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __getitem__(self, all_of_it) -> "Packed":
        """As an array's `[...]`, by which a module reads its parameter."""
        assert all_of_it is Ellipsis
        return self

    @property
    def dtype(self) -> jnp.dtype:
        """Of the numbers: of bfloat16 its own, of integers that of scales before they were rounded."""
        return jnp.dtype("bfloat16" if self.kind == "bfloat16" else "float32")

    @property
    def block(self) -> int:
        """How many inputs have one scale; for bfloat16 how many are multiplied at a time."""
        return 2 if self.scales is None else math.prod(self.inputs) // self.scales.shape[-2]

    def matmul(self, x: jax.Array, out_spec) -> jax.Array:
        """`x` `[B, T, *inputs]` times the matrix, `[B, T, *outputs]` float32. Of integers, `x` is rounded to 8 bits."""
        return products([self], x, [out_spec])[0]

    @property
    def target(self) -> str:
        """What XLA calls."""
        half = self.scales is not None and self.scales.dtype == jnp.float16
        return cpu_kernels.target_name(BITS[self.kind], self.block, half)

    def rows(self, indices_BT: jax.Array, dtype: jnp.dtype, out_spec) -> jax.Array:
        """Of a table, the numbers of some outputs, `[B, T, inputs]`."""

        def local(indices_BT, codes, scales):
            tiles_M, lanes_M = indices_BT.reshape(-1) // LANES, indices_BT.reshape(-1) % LANES
            own = None if scales is None else scales[tiles_M, :, lanes_M]
            found_MK = self._numbers(_split(codes, self.kind)[tiles_M, :, :, lanes_M], own)
            return found_MK.reshape(*indices_BT.shape, -1).astype(dtype)

        return jax.shard_map(local, out_specs=out_spec, check_vma=False)(indices_BT, self.codes, self.scales)

    def unpacked(self) -> jax.Array:
        """The numbers, `[*inputs, *outputs]`, with the layers before them if there are several."""

        def local(codes, scales):
            codes = jnp.moveaxis(_split(codes, self.kind), -2, -4)
            numbers = self._numbers(codes, scales if scales is None else jnp.swapaxes(scales, -1, -2))
            numbers = jnp.moveaxis(numbers, -1, -3)  # the inputs before tiles and lanes
            whole = numbers.reshape(*numbers.shape[:-2], -1)[..., : math.prod(self.outputs)]
            return whole.reshape(*whole.shape[:-2], *self.inputs, *self.outputs)

        return jax.shard_map(local, out_specs=jax.P(), check_vma=False)(self.codes, self.scales)

    def _numbers(self, codes, scales):
        """Of codes `[..., units, fours, 4]` and scales `[..., blocks]`, the numbers `[..., inputs]`."""
        codes = codes.reshape(*codes.shape[:-2], -1)
        if scales is None:
            return codes.reshape(*codes.shape[:-2], -1)
        codes = jnp.concatenate([codes & 15, codes >> 4], axis=-1) if self.kind == "int4" else codes
        numbers = codes.astype(jnp.float32) - (8 if self.kind == "int4" else 128)
        blocks = numbers.reshape(*codes.shape[:-2], -1, self.block)
        return (blocks * scales[..., None].astype(jnp.float32)).reshape(*codes.shape[:-2], -1)


def _split(codes, kind: str):
    """Codes of `Packed`, `[..., units, fours, 16, 4]`, or pairs for bfloat16."""
    return codes.reshape(*codes.shape[:-1], -1, LANES, 2 if kind == "bfloat16" else 4)


def products(matrices: Sequence[Packed], x: jax.Array, out_specs: Sequence) -> list[jax.Array]:
    """`Packed.matmul` with each of several matrices; those of a kind are one call, which shares what it costs."""
    if len({matrix.target for matrix in matrices}) > 1:
        return [matrix.matmul(x, spec) for matrix, spec in zip(matrices, out_specs, strict=True)]
    first = matrices[0]

    def local(x, *parts):
        K = math.prod(first.inputs)
        x_MK = x.reshape(-1, K).astype(jnp.bfloat16 if first.scales is None else jnp.float32)
        M, blocks = len(x_MK), (len(x_MK), K // first.block)
        rounded = [] if first.scales is None else [((M, K), jnp.int8), (blocks, jnp.float32), (blocks, jnp.int32)]
        results = [((M, LANES * len(codes)), jnp.float32) for codes in parts[:: 1 if first.scales is None else 2]]
        call = jax.ffi.ffi_call(first.target, [jax.ShapeDtypeStruct(*of) for of in results + rounded])
        return [
            out_MN[:, : math.prod(matrix.outputs)].reshape(*x.shape[:2], *matrix.outputs)
            for matrix, out_MN in zip(matrices, call(x_MK, *parts), strict=False)
        ]

    parts = [part for matrix in matrices for part in (matrix.codes, matrix.scales) if part is not None]
    return jax.shard_map(local, out_specs=list(out_specs), check_vma=False)(x, *parts)


def is_packed(node: Any) -> bool:
    """Whether the node of a tree is a packed matrix."""
    return isinstance(node, Packed)
