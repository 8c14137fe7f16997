"""Writing a Hugging Face directory: tensors one at a time, in shards with an index, and the `config.json`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.config import ModelConfig
from tpullm.huggingface import configs, tensors
from tpullm.huggingface.families import FAMILIES, Family
from tpullm.huggingface.reading import INDEX, SINGLE

Tree = Any
SHARD_BYTES = 5_000_000_000
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_model(
    folder: Path,
    config: ModelConfig,
    params: Tree,
    axes: Tree,
    dtype: str,
    done: Callable[[int], None],
    shard_bytes=None,
) -> None:
    """Write `config.json` and the weights. Memory beyond `params` is that of one tensor.

    Args:
        folder: an empty folder.
        params: arrays, on any device.
        dtype: `float32`, `bfloat16` or `float16`.
        done: called with the bytes of each tensor.
    """
    written = configs.write(config, dtype)
    family, kind = FAMILIES[written["model_type"]], _numpy(dtype)
    params, axes = tensors.flat(params), tensors.flat(axes)
    plan = list(_plan(family, params, axes, config.layers))
    shards = _shards(plan, kind.itemsize, shard_bytes or SHARD_BYTES)
    files = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with open(folder / name, "wb") as file:
            file.write(_header(shard, dtype, kind.itemsize))
            for their_name, _, ours, place, inputs in shard:
                parts = [np.asarray(params[key][place]) for key in ours]
                tensor = tensors.joined(family, parts, inputs).astype(kind)
                tensor.tofile(file)
                files[their_name] = name
                done(tensor.nbytes)
    if len(shards) > 1:
        size = sum(int(np.prod(shape)) * kind.itemsize for _, shape, *_ in plan)
        _json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    _json(folder / "config.json", written)


def _plan(family: Family, params: dict, axes: dict, layers: int) -> Iterator[tuple]:
    """Each tensor of theirs: name, shape, names of ours, place in them, how many dimensions are inputs."""
    for name, ours, place in tensors.pieces(family, params, layers):
        inputs = tensors.input_dimensions(ours[0], axes[ours[0]], place)
        shapes = [params[key].shape[len(place) :] for key in ours]
        yield name, tensors.their_shape(family, shapes, inputs), ours, place, inputs


def _shards(plan: list[tuple], itemsize: int, most: int) -> list[list[tuple]]:
    shards, size = [[]], 0
    for entry in plan:
        entry_size = int(np.prod(entry[1])) * itemsize
        if size + entry_size > most and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry_size
    return shards


def _header(shard: list[tuple], dtype: str, itemsize: int) -> bytes:
    """The header of a safetensors file (huggingface.co/docs/safetensors): its length, and JSON of where tensors lie."""
    described, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, *_ in shard:
        start, end = end, end + int(np.prod(shape)) * itemsize
        described[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _numpy(dtype: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
