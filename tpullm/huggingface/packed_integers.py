"""Matrices as whole numbers of 8 or 4 bits, in the format of compressed-tensors, which transformers and vLLM read.

In place of `X.weight` `[out, in]` are three tensors ("pack-quantized" of compressed-tensors 0.20): `X.weight_scale`
`[out, in / G]`, one scale for each group of G inputs; `X.weight_packed` `[out, in * bits / 32]` int32, in which the
first input has the lowest bits, and a number n is stored as n + 2^(bits - 1); `X.weight_shape`, `[out, in]`. What is
multiplied is number times scale, and activations stay as they are (vLLM's W8A16 and W4A16).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpullm.errors import UserError
from tpullm.huggingface.families import Family
from tpullm.recipe.schema import ModelConfig

BITS = {"int8": 8, "int4": 4}
# What the largest of a group becomes: see `model.quantized.KINDS`, whose numbers these are.
MOST = {"int8": 127.0, "int4": 7.49}
GROUP, LEAST_GROUP = 64, 32  # inputs; vLLM's kernels have groups of 32, 64 and 128

Part = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PackedIntegers:
    """How the matrices of a model are written.

    Args:
        kind: a key of `BITS`.
        group: inputs that have one scale.
    """

    kind: str
    group: int

    def parts(
        self, name: str, shape: tuple[int, int], dtype: np.dtype
    ) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Part]]:
        """The tensors in place of one matrix: name, shape, type, and what makes it of the matrix.

        Args:
            name: `X.weight`.
            shape: `[out, in]`.
            dtype: of the scales.
        """
        outputs, inputs = shape
        packed, scales = (outputs, inputs * BITS[self.kind] // 32), (outputs, inputs // self.group)
        yield f"{name}_packed", packed, np.dtype("int32"), lambda matrix: self.packed(*self.rounded(matrix, dtype))
        yield f"{name}_scale", scales, dtype, lambda matrix: self.rounded(matrix, dtype)[1]
        yield f"{name}_shape", (2,), np.dtype("int64"), lambda matrix: np.array(matrix.shape, np.int64)

    def rounded(self, matrix: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of a matrix, int8 `[out, in]`, and its scales in `dtype`, `[out, in / group]`.

        Scales are rounded first, so that numbers are the nearest to what they are multiplied with.
        """
        groups = matrix.astype(np.float32).reshape(len(matrix), -1, self.group)
        scales = (np.abs(groups).max(axis=2) * np.float32(1 / MOST[self.kind])).astype(dtype)
        divisors = np.where(scales > 0, scales, 1).astype(np.float32)
        half = 1 << (BITS[self.kind] - 1)
        numbers = np.rint(groups / divisors[..., None]).clip(-half, half - 1)
        return numbers.astype(np.int8).reshape(matrix.shape), scales

    def packed(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The numbers of a matrix as int32 `[out, in * bits / 32]`."""
        bits = BITS[self.kind]
        found = (numbers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
        if bits == 4:
            found = found[:, ::2] | (found[:, 1::2] << 4)
        return np.ascontiguousarray(found).view("<i4")

    def settings(self) -> dict[str, Any]:
        """`quantization_config` of `config.json`."""
        weights = {"num_bits": BITS[self.kind], "type": "int", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "group", "group_size": self.group}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }


def is_packed(ours: str) -> bool:
    """Whether our parameter of this name is a matrix that is packed: one of attention or MLP."""
    return ours.startswith("layers.") and ours.endswith(".weight")


def of_model(kind: str, config: ModelConfig, family: Family) -> PackedIntegers:
    """How the matrices of a model are written in `kind`.

    Raises:
        UserError: transformers or vLLM would not read them.
    """
    if config.experts:
        raise UserError(
            f"--weights {kind}: transformers reads experts as they are only; use --dtype bfloat16, or --format gguf"
        )
    if not family.transposed:
        raise UserError(
            f"--weights {kind}: {family.architecture} has no linear layers that are read so; use --dtype bfloat16"
        )
    inputs = {"model.width": config.width, "model.mlp_width": config.mlp_width}
    inputs["model.heads x model.head_width"] = config.heads * config.head_width
    for name, size in inputs.items():
        if size % LEAST_GROUP:
            raise UserError(
                f"--weights {kind}: a scale is of {LEAST_GROUP} or {GROUP} inputs of a matrix, and {name} is {size}, "
                f"no multiple of {LEAST_GROUP}; use --dtype bfloat16"
            )
    return PackedIntegers(kind, math.gcd(GROUP, *inputs.values()))
