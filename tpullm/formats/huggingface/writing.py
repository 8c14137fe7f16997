"""Writes a Hugging Face directory: tensors, one at a time, in shards with an index, and `config.json`.

Matrices may be written as whole numbers of 8 or 4 bits ("pack-quantized" of compressed-tensors 0.20), which
transformers and vLLM read. In place of `X.weight` `[out, in]` are then three tensors: `X.weight_scale`
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
from tpullm.formats.huggingface.reading import DTYPES, INDEX, SINGLE
from tpullm.recipe.schema import ModelConfig
from tpullm.system import storage
from tpullm.system.errors import UserError

BITS = {"int8": 8, "int4": 4}
# What the largest of a group becomes: see `model.quantized.KINDS`, whose numbers these are.
MOST = {"int8": 127.0, "int4": 7.49}
GROUP, LEAST_GROUP = 64, 32  # inputs; vLLM's kernels have groups of 32, 64 and 128
TYPE_NAMES = {dtype.name: name for name, dtype in DTYPES.items()} | {"int32": "I32", "int64": "I64"}


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

    def with_head(self, of: str, scale: float = 1.0) -> "Parameters":
        """The same with an output table of its own, a copy of `of`, and with embeddings times `scale`."""

        def read(name: str) -> np.ndarray:
            if name == "embedding" and scale != 1:
                return self.read(name) * np.float32(scale)
            return self.read(of if name == "head" else name)

        targets, axes = ({**each, "head": each[of]} for each in (self.targets, self.axes))
        return Parameters(targets, axes, read)


def as_published(config: ModelConfig, params: Parameters, preferred: str) -> tuple[dict, ModelConfig, Parameters]:
    """The `config.json` of the model, and the config and parameters that match it.

    Our own models multiply embeddings by the root of the width when they look them up. No published family with the
    same norms does, so such a model is written with multiplied embeddings, and thus with an output table of its own.

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
    params = params.with_head("embedding" if config.tied_embeddings else "head", config.width**0.5)
    config = dataclasses.replace(config, scale_embeddings=False, tied_embeddings=False)
    return configs.write(config, preferred), config, params


@dataclass(frozen=True)
class PublishedTensor:
    """One of their tensors.

    Args:
        name, shape, dtype: as in the file.
        ours: our parameters in it.
        place: its place in them.
        inputs: its input dimensions.
        made: what makes it of these parameters.
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
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PublishedModel:
    """What a directory will hold: its `config.json`, its family, the parameters that match it, and all tensors."""

    config: dict[str, Any]
    family: Family
    params: Parameters
    tensors: list[PublishedTensor]

    @property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)


def planned(config: ModelConfig, params: Parameters, preferred: str = "", weights: str = "") -> PublishedModel:
    """What the directory of a model will hold.

    Args:
        preferred: the `model_type` to try first.
        weights: a key of `BITS`, in which the matrices of layers are written; "" is their type.

    Raises:
        UserError: no family has such a model, or it can't be written in `weights`.
    """
    published, config, params = as_published(config, params, preferred)
    family, found = FAMILIES[published["model_type"]], []
    packed = packing(weights, config, family) if weights else None
    published |= {"quantization_config": packed.settings()} if packed else {}
    for name, ours, place in tensors.pieces(family, params.targets):
        inputs = tensors.input_dimensions(ours[0], params.axes[ours[0]], place)
        shapes = [params.targets[key].shape[len(place) :] for key in ours]
        shape, dtype = tensors.their_shape(family, shapes, inputs), np.dtype(params.targets[ours[0]].dtype)
        parts = [(name, shape, dtype, lambda exact: exact)]
        if packed and "layers." in ours[0] and ours[0].endswith(".weight"):
            parts = packed.parts(name, shape, dtype)
        found += [PublishedTensor(*part, ours, place, inputs, made) for *part, made in parts]
    return PublishedModel(published, family, params, found)


def write(folder: Path, model: PublishedModel, described: dict, done: Callable[[int], None], shard_bytes: int) -> None:
    """Write `config.json` and the weights. Memory holds one tensor and the parameters that it is made of.

    Args:
        folder: an empty folder.
        described: further keys of `config.json`: the ids of special tokens.
        done: called with the bytes of each tensor.
        shard_bytes: the largest size of a file of weights.

    Raises:
        UserError: a value is too large for float16.
    """
    shards, size = [[]], 0
    for tensor in model.tensors:
        if size + tensor.size > shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    files, held = {}, {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with open(folder / name, "wb") as file:
            # The header (huggingface.co/docs/safetensors): its length, and offsets as JSON.
            header, end = {"__metadata__": {"format": "pt"}}, 0
            for tensor in shard:
                start, end = end, end + tensor.size
                kind, shape = TYPE_NAMES[tensor.dtype.name], list(tensor.shape)
                header[tensor.name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in shard:
                held = {key: held[key] for key in tensor.ours if key in held}  # released before others are read
                held |= {key: model.params.read(key) for key in tensor.ours if key not in held}
                # `tofile` raises no error if the device is full.
                file.write(_published_tensor_bytes(model.family, tensor, held))
                files[tensor.name] = name
                done(tensor.size)
    if len(shards) > 1:
        storage.write_json(folder / INDEX, {"metadata": {"total_size": model.size}, "weight_map": files})
    dtype = model.params.targets["embedding"].dtype.name
    storage.write_json(folder / "config.json", {**model.config, **described, "dtype": dtype, "torch_dtype": dtype})


def _published_tensor_bytes(family: Family, tensor: PublishedTensor, held: dict[str, np.ndarray]) -> np.ndarray:
    exact = tensors.joined(family, [held[key][tensor.place] for key in tensor.ours], tensor.inputs)
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(tensor.made(exact).astype(tensor.dtype, copy=False))
    if found.dtype == np.float16 and np.isinf(found).any() and not np.isinf(exact).any():
        raise UserError(f"--dtype: float16 is too small for the values of {tensor.name}; use bfloat16")
    return found.reshape(-1).view(np.uint8)


@dataclass(frozen=True)
class PackedIntegers:
    """How the matrices of a model are written as whole numbers.

    Args:
        kind: a key of `BITS`.
        group: inputs that have one scale.
    """

    kind: str
    group: int

    def parts(self, name: str, shape: tuple[int, int], dtype: np.dtype) -> Iterator[tuple]:
        """The tensors in place of one matrix: name, shape, type, and what makes it of the matrix.

        Args:
            name: `X.weight`.
            shape: `[out, in]`.
            dtype: of the scales.
        """
        outputs, inputs = shape
        packed, scales = (outputs, inputs * BITS[self.kind] // 32), (outputs, inputs // self.group)
        yield f"{name}_packed", packed, np.dtype("int32"), lambda matrix: self.packed(self.rounded(matrix, dtype)[0])
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

    def packed(self, numbers: np.ndarray) -> np.ndarray:
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


def packing(kind: str, config: ModelConfig, family: Family) -> PackedIntegers:
    """How the matrices of a model are written in `kind`; `UserError` if transformers or vLLM would not read them."""
    inputs = {"model.width": config.width, "model.mlp_width": config.mlp_width}
    inputs["model.heads x model.head_width"] = config.heads * config.head_width
    why = ""
    if config.experts:
        why = "transformers reads experts as they are only; use --dtype bfloat16, or --format gguf"
    elif not family.transposed:
        why = f"{family.architecture} has no linear layers that are read so; use --dtype bfloat16"
    elif name := next((name for name, size in inputs.items() if size % LEAST_GROUP), ""):
        why = (
            f"a scale is of {LEAST_GROUP} or {GROUP} inputs of a matrix, and {name} is {inputs[name]}, no multiple of "
            f"{LEAST_GROUP}; use --dtype bfloat16"
        )
    if why:
        raise UserError(f"--weights {kind}: {why}")
    return PackedIntegers(kind, math.gcd(GROUP, *inputs.values()))
