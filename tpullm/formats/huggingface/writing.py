"""Writes a Hugging Face directory: tensors, one at a time, in shards with an index, and `config.json`.

Matrices as whole numbers of 8 or 4 bits, in the format of compressed-tensors, which transformers and vLLM read.

In place of `X.weight` `[out, in]` are three tensors ("pack-quantized" of compressed-tensors 0.20): `X.weight_scale`
`[out, in / G]`, one scale for each group of G inputs; `X.weight_packed` `[out, in * bits / 32]` int32, in which the
first input has the lowest bits, and a number n is stored as n + 2^(bits - 1); `X.weight_shape`, `[out, in]`. What is
multiplied is number times scale, and activations stay as they are (vLLM's W8A16 and W4A16).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.formats.huggingface import configs, tensors
from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.formats.huggingface.weight_files import INDEX, SINGLE, TYPE_NAMES
from tpullm.recipe.schema import ModelConfig
from tpullm.system import storage
from tpullm.system.errors import UserError

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


INTEGERS = {"int32": "I32", "int64": "I64"}


@dataclass(frozen=True)
class Parameters:
    """Our parameters, each read when it is needed.

    Args:
        targets: the shape of each, and the type to write, by flat name.
        axes: the logical axes of each.
        read: returns one parameter as a numpy array.
    """

    targets: dict[str, Any]
    axes: dict[str, tuple[str, ...]]
    read: Callable[[str], np.ndarray]


def size(config: ModelConfig, params: Parameters, preferred: str = "", weights: str = "") -> int:
    """The bytes of all tensors that `write_model` writes; arguments and errors are those of it."""
    return sum(entry.size for entry in _planned(config, params, preferred, weights)[-1])


def published_family(config: ModelConfig, preferred: str = "") -> Family:
    """The family that a model is written in; `UserError` if no family has such a model."""
    written, *_ = as_published(
        config, Parameters({"embedding": None, "head": None}, {"embedding": (), "head": ()}, None), preferred
    )
    return FAMILIES[written["model_type"]]


def as_published(
    config: ModelConfig, params: Parameters, preferred: str
) -> tuple[dict[str, Any], ModelConfig, Parameters]:
    """The `config.json` of the model, and the config and parameters that match it.

    Args:
        preferred: the `model_type` to try first.

    Raises:
        UserError: no family has such a model.
    """
    try:
        return configs.write(config, preferred), config, params
    except UserError:
        if not config.scale_embeddings:
            raise
    config, params = unscaled(config, params)
    return configs.write(config, preferred), config, params


def unscaled(config: ModelConfig, params: Parameters) -> tuple[ModelConfig, Parameters]:
    """The same model with embeddings that are multiplied by the root of the width, and thus with its own output table.

    Our own models multiply embeddings by the root when they look them up. No published family with the same norms does.
    """
    output = "embedding" if config.tied_embeddings else "head"

    def read(name: str) -> np.ndarray:
        if name == "embedding":
            return params.read("embedding") * np.float32(config.width**0.5)
        return params.read(output if name == "head" else name)

    targets, axes = ({**of, "head": of[output]} for of in (params.targets, params.axes))
    return dataclasses.replace(config, scale_embeddings=False, tied_embeddings=False), Parameters(targets, axes, read)


def write_model(
    folder: Path,
    config: ModelConfig,
    params: Parameters,
    described: dict[str, Any],
    done: Callable[[int], None],
    shard_bytes: int,
    preferred: str = "",
    weights: str = "",
) -> None:
    """Write `config.json` and the weights. Memory holds one tensor and the parameters that it is made of.

    Args:
        folder: an empty folder.
        described: further keys of `config.json`: the ids of special tokens.
        done: called with the bytes of each tensor.
        shard_bytes: the largest size of a file of weights.
        preferred: the `model_type` to try first.
        weights: a key of `packed_integers.BITS`, in which the matrices of layers are written; "" is their type.

    Raises:
        UserError: no family has such a model, or it can't be written in `weights`.
    """
    written, family, params, plan = _planned(config, params, preferred, weights)
    shards = _shards(plan, shard_bytes)
    files, held = {}, {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with open(folder / name, "wb") as file:
            file.write(_header(shard))
            for entry in shard:
                held = {key: held[key] for key in entry.ours if key in held}  # released before others are read
                held |= {key: params.read(key) for key in entry.ours if key not in held}
                _write_tensor(file, family, entry, held)
                files[entry.name] = name
                done(entry.size)
    if len(shards) > 1:
        size = sum(entry.size for entry in plan)
        storage.write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    dtype = params.targets["embedding"].dtype.name
    storage.write_json(folder / "config.json", {**written, **described, "dtype": dtype, "torch_dtype": dtype})


def _planned(
    config: ModelConfig, params: Parameters, preferred: str, weights: str
) -> tuple[dict[str, Any], Family, Parameters, list["_Tensor"]]:
    """`config.json`, the family, the parameters that match it, and all tensors."""
    written, config, params = as_published(config, params, preferred)
    family = FAMILIES[written["model_type"]]
    packed = of_model(weights, config, family) if weights else None
    written |= {"quantization_config": packed.settings()} if packed else {}
    return written, family, params, list(_plan(family, params, config.layers, packed))


def _write_tensor(file, family: Family, entry: "_Tensor", held: dict[str, np.ndarray]) -> None:
    parts = [held[key][entry.place] for key in entry.ours]
    exact = tensors.joined(family, parts, entry.inputs)
    with np.errstate(over="ignore"):
        tensor = np.ascontiguousarray(entry.made(exact).astype(entry.dtype, copy=False))
    if tensor.dtype == np.float16 and np.isinf(tensor).any() and not np.isinf(exact).any():
        raise UserError(f"--dtype: float16 is too small for the values of {entry.name}; use bfloat16")
    file.write(tensor.reshape(-1).view(np.uint8))  # `tofile` raises no error if the device is full


@dataclass(frozen=True)
class _Tensor:
    """One of their tensors: name, shape, type, our parameters in it, its place in them, its input dimensions, and what
    makes it of these parameters.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    ours: tuple[str, ...]
    place: tensors.Place
    inputs: int
    made: Callable[[np.ndarray], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _plan(family: Family, params: Parameters, layers: int, packed: PackedIntegers | None) -> Iterator[_Tensor]:
    for name, ours, place in tensors.pieces(family, params.targets, layers):
        inputs = tensors.input_dimensions(ours[0], params.axes[ours[0]], place)
        shapes = [params.targets[key].shape[len(place) :] for key in ours]
        shape, dtype = tensors.their_shape(family, shapes, inputs), np.dtype(params.targets[ours[0]].dtype)
        parts = [(name, shape, dtype, lambda exact: exact)]
        if packed and is_packed(ours[0]):
            parts = packed.parts(name, shape, dtype)
        for *of, made in parts:
            yield _Tensor(*of, ours, place, inputs, made)


def _shards(plan: list[_Tensor], most: int) -> list[list[_Tensor]]:
    shards, size = [[]], 0
    for entry in plan:
        if size + entry.size > most and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.size
    return shards


def _header(shard: list[_Tensor]) -> bytes:
    """The header of a safetensors file (huggingface.co/docs/safetensors): its length, and offsets as JSON."""
    described, end = {"__metadata__": {"format": "pt"}}, 0
    for entry in shard:
        start, end = end, end + entry.size
        described[entry.name] = {
            "dtype": (TYPE_NAMES | INTEGERS)[entry.dtype.name],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
