"""The tensors of a GGUF file, and what they hold of our parameters: ours → theirs, and back.

A matrix is `[out, in]` there, and `[E, out, in]` for experts. Ours are stacked, `[L, *inputs, *outputs]`.
Shapes: L layers, E experts, N heads, H head width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpullm.formats.gguf.architectures import NAMES, Architecture
from tpullm.formats.huggingface import tensors
from tpullm.recipe.schema import ModelConfig


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
                    shapes = [self._shape(one, layer) for one in ours]
                    shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
                    name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[kind]].format(bid=layer)
                    found.append(Tensor(f"{name}.{suffix}", kind, shape, ours, layer, is_matrix))
        return found

    def _shape(self, key: str, layer: int | None) -> tuple[int, ...]:
        """The shape of a layer of one of our parameters as a file has it."""
        shape = self.shapes[key].shape[layer is not None :]
        return self._laid_out(key, np.broadcast_to(np.float32(0), shape)).shape  # it takes no memory

    def _laid_out(self, key: str, part: np.ndarray) -> np.ndarray:
        """A layer of one of our parameters: `[out, in]`, `[E, out, in]`, or a vector (`[E, out]`)."""
        inputs = self._input_dimensions(key)
        if inputs is None:
            return part.swapaxes(-1, -2)
        if inputs < 0:
            return part.reshape(-1)
        return part if inputs == 0 else part.reshape(math.prod(part.shape[:inputs]), -1).T

    def _input_dimensions(self, key: str) -> int | None:
        """As of `tensors.input_dimensions`; None for the matrices of experts."""
        axes = self.axes[key]
        if axes[1:2] == ("experts",) and len(axes) > 2:
            return 0 if key.endswith(".bias") else None
        return tensors.input_dimensions(key, axes, (0,) if key.startswith("layers.") else ())

    def _heads(self, key: str) -> int:
        """The heads whose halves are interleaved there; 0 if they are not."""
        heads = {"layers.attention.query": self.config.heads, "layers.attention.key": self.config.kv_heads}
        return heads.get(key.rsplit(".", 1)[0], 0) if self.architecture.interleaved else 0

    def _offset(self, key: str) -> np.float32:
        """What is added to our values."""
        return np.float32(self.config.norm_unit_offset and key.endswith(".scale"))

    def joined(self, tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
        """The values of a tensor, float32; `parts` are a layer of each of our parameters in it."""
        found = []
        for key, part in zip(tensor.ours, parts, strict=True):
            part = self._laid_out(key, part).astype(np.float32)
            if heads := self._heads(key):
                part = part.reshape(heads, 2, -1, *part.shape[1:]).swapaxes(1, 2).reshape(part.shape)
            found.append(part + self._offset(key) if self._offset(key) else part)
        return np.ascontiguousarray(np.concatenate(found) if len(found) > 1 else found[0])

    def split(self, tensor: Tensor, values: np.ndarray) -> list[np.ndarray]:
        """The inverse of `joined`."""
        rows = [self._shape(key, tensor.layer)[0] for key in tensor.ours]
        found = []
        for key, part in zip(tensor.ours, np.split(values, np.cumsum(rows)[:-1]), strict=True):
            if heads := self._heads(key):
                part = part.reshape(heads, -1, 2, *part.shape[1:]).swapaxes(1, 2).reshape(part.shape)
            inputs, shape = self._input_dimensions(key), self.shapes[key].shape[tensor.layer is not None :]
            part = part.swapaxes(-1, -2) if inputs is None else part.T if inputs > 0 else part
            found.append(part.reshape(shape) - self._offset(key) if self._offset(key) else part.reshape(shape))
        return found
