"""The tensors of a GGUF file, and what they hold of our parameters: ours → theirs, and back.

A matrix is `[out, in]` there, and `[E, out, in]` for experts. Ours are stacked, `[L, *inputs, *outputs]`.
Shapes: L layers, E experts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpullm.formats.gguf.architectures import NAMES, Architecture
from tpullm.formats.huggingface import tensors
from tpullm.formats.huggingface.families import FAMILIES
from tpullm.recipe.schema import ModelConfig

_LLAMA = FAMILIES["llama"]  # its matrices are laid out as in a GGUF file


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Args:
        name: its name.
        kind: its name in `gguf.MODEL_TENSOR`.
        shape: its shape, as numpy has it.
        ours: our parameters in it, in order.
        layer: the layer, or None.
        is_matrix: whether a type of fewer bits may hold it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    layer: int | None
    is_matrix: bool

    def size(self, dtype: str) -> int:
        """Its bytes in a type."""
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True)
class Layout:
    """What a file has of a model.

    Args:
        config, architecture: what the model computes, in our terms and in llama.cpp's.
        shapes: of our parameters, by flat name; any value that has a `shape`.
        axes: the logical axes of each.
    """

    config: ModelConfig
    architecture: Architecture
    shapes: Mapping[str, Any]
    axes: Mapping[str, tuple[str, ...]]

    def tensors(self) -> list[Tensor]:
        """All tensors; those of the same parameters stand one after the other."""
        import gguf

        config, architecture = self.config, self.architecture
        of_experts = ("layers.mlp.gate", "layers.mlp.up", "layers.mlp.down") if config.experts else ()
        names = NAMES | {stem: f"{NAMES[stem]}_EXP" for stem in of_experts} | {"layers.mlp_norm": architecture.mlp_norm}
        names |= {} if config.gated else {"layers.mlp.gate": "FFN_UP"}
        found, fused = [], {part: (kind, parts) for kind, parts in architecture.fused.items() for part in parts}
        for key in sorted(self.shapes, key=lambda key: list(NAMES).index(key.rsplit(".", 1)[0])):
            stem = key.rsplit(".", 1)[0]
            kind, parts = fused.get(stem, (names[stem], (stem,)))
            if stem == parts[0]:
                ours = tuple(key.replace(stem, part, 1) for part in parts)
                suffix = "bias" if key.endswith(".bias") else "weight"
                # llama.cpp's own files have these two tables in float32.
                is_matrix = kind not in ("POS_EMBD", "FFN_GATE_INP") and not tensors.is_vector(key)
                for layer in range(config.layers) if key.startswith("layers.") else (None,):
                    shape = self._shape(ours, layer)
                    name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[kind]].format(bid=layer)
                    found.append(Tensor(f"{name}.{suffix}", kind, shape, ours, layer, is_matrix))
        return found

    def _ours(self, ours: tuple[str, ...], layer: int | None) -> tuple[list[tuple[int, ...]], int | None]:
        """The shapes of a layer of our parameters, and their `input_dimensions`: None for matrices of experts."""
        axes = self.axes[ours[0]]
        shapes = [self.shapes[key].shape[layer is not None :] for key in ours]
        if axes[1:2] == ("experts",) and len(axes) > 2 and not ours[0].endswith(".bias"):
            return shapes, None
        return shapes, tensors.input_dimensions(ours[0], axes, () if layer is None else (layer,))

    def _shape(self, ours: tuple[str, ...], layer: int | None) -> tuple[int, ...]:
        shapes, inputs = self._ours(ours, layer)
        if inputs is None:
            E, rows, columns = shapes[0]
            return E, columns, rows
        return tensors.their_shape(_LLAMA, shapes, inputs)

    def _interleaved(self, tensor: Tensor, values: np.ndarray, *halves: int) -> np.ndarray:
        """The halves of each head as `halves` says, and the other way round, where RoPE turns neighbours."""
        heads = {"ATTN_Q": self.config.heads, "ATTN_K": self.config.kv_heads}.get(tensor.kind)
        if not heads or not self.architecture.interleaved:
            return values
        return values.reshape(heads, *halves, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

    def _offset(self, tensor: Tensor) -> np.float32:
        """What is added to our values."""
        return np.float32(self.config.norm_unit_offset and tensor.ours[0].endswith(".scale"))

    def joined(self, tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
        """The values of a tensor, float32; `parts` are a layer of each of our parameters in it."""
        inputs = self._ours(tensor.ours, tensor.layer)[1]
        values = parts[0].swapaxes(-1, -2) if inputs is None else tensors.joined(_LLAMA, parts, inputs)
        values = self._interleaved(tensor, values.astype(np.float32, copy=False), 2, -1)
        return np.ascontiguousarray(values + self._offset(tensor) if self._offset(tensor) else values)

    def split(self, tensor: Tensor, values: np.ndarray) -> list[np.ndarray]:
        """The inverse of `joined`."""
        shapes, inputs = self._ours(tensor.ours, tensor.layer)
        values = self._interleaved(tensor, values, -1, 2)
        values = values - self._offset(tensor) if self._offset(tensor) else values
        return [values.swapaxes(-1, -2)] if inputs is None else tensors.split(_LLAMA, values, shapes, inputs)
