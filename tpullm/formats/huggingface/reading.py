"""Reads a Hugging Face directory: its config, and its tensors, one at a time, into our stacked parameters."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.formats.huggingface import configs, tensors
from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.formats.huggingface.weight_files import WeightFiles
from tpullm.recipe.schema import ModelConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import read_json

Tree = Any
MOST_MISSING = 100_000  # tensors that an error counts
# Tables that older versions of transformers saved with the model, and recomputed when they loaded it.
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")


def read_config(folder: Path) -> tuple[ModelConfig, Family]:
    """The `ModelConfig` of the model in `folder`, and its family; `UserError` if we can't compute the model."""
    path = folder / "config.json"
    config = read_json(path)
    return configs.read(config, str(path)), FAMILIES[config["model_type"]]


def check(source: WeightFiles, family: Family, shapes: Tree, axes: Tree, layers: int) -> list[tuple]:
    """Check that every tensor is used once and every parameter is set once.

    Returns:
        What `fill` reads. For each tensor: its name in the files, the names of our parameters in it, its place in them,
        and the number of input dimensions.

    Raises:
        UserError: tensors are missing, unknown or of another shape; the error names them.
    """
    shapes, axes = tensors.flat(shapes), tensors.flat(axes)
    named = _as_named(source.files, family)
    # The files say how many tensors there are. A config that asks for millions more is not counted to its end.
    wanted = list(itertools.islice(tensors.pieces(family, shapes, layers), len(named) + MOST_MISSING))
    over = {name for name in named if not _COMPUTED.search(name)} - {name for name, _, _ in wanted}
    _tied(source, named, over)
    missing = [name for name, _, _ in wanted if name not in named]
    if missing or over:
        which = " and ".join(filter(None, (_some("missing", missing), _some("unknown", over))))
        raise UserError(f"{source.folder}: {which}; config.json and the weights are not of the same model")
    found = []
    for name, ours, place in wanted:
        inputs = tensors.input_dimensions(ours[0], axes[ours[0]], place)
        expected = tensors.their_shape(family, [shapes[key].shape[len(place) :] for key in ours], inputs)
        if (shape := source.shape(named[name])) != expected:
            raise UserError(
                f"{source.folder}: {name} is {list(shape)!s:.80} instead of {list(expected)}; config.json is of "
                "another model"
            )
        found.append((named[name], ours, place, inputs))
    return found


def stored(source: WeightFiles, wanted: list[tuple]) -> dict[str, np.dtype]:
    """The type of each of our parameters in the files; float32 if its tensors have several types.

    Args:
        wanted: the result of `check`.

    Raises:
        UserError: the type of a tensor is not a known floating-point type, so the checkpoint is quantized.
    """
    found: dict[str, set[np.dtype]] = {}
    for name, ours, *_ in wanted:
        for key in ours:
            found.setdefault(key, set()).add(source.numpy_dtype(name))
    return {key: kinds.pop() if len(kinds) == 1 else np.dtype("float32") for key, kinds in found.items()}


def fill(
    source: WeightFiles,
    family: Family,
    targets: Tree,
    axes: Tree,
    layers: int,
    place: Callable[[np.ndarray, Any], Any],
    done: Callable[[int], None],
) -> Tree:
    """All parameters, stacked ones as `[L, ...]`, from the tensors of a directory.

    Memory holds the results of `place`, one parameter and one tensor.

    Args:
        targets: the shape and type of each of our parameters.
        axes: the logical axes of each of our parameters.
        place: called with each complete parameter and its target; its result is in the returned tree.
        done: called with the bytes of each tensor.

    Raises:
        UserError: tensors are missing, unknown or of another shape; the error names them.
    """
    found, held, wanted = {}, {}, check(source, family, targets, axes, layers)
    targets, left = tensors.flat(targets), Counter(key for _, ours, *_ in wanted for key in ours)
    for name, ours, where, inputs in wanted:
        tensor = source(name)
        parts = tensors.split(family, tensor, [targets[key].shape[len(where) :] for key in ours], inputs)
        for key, part in zip(ours, parts, strict=True):
            if key not in held:
                held[key] = _empty(targets[key].shape, targets[key].dtype)
            held[key][where] = part
            left[key] -= 1
            if not left[key]:
                found[key] = place(held.pop(key), targets[key])
        done(tensor.nbytes)
    return tensors.nested(found)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes, which JAX uses on a CPU without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _as_named(files: dict[str, str], family: Family) -> dict[str, str]:
    """The family's names of the tensors → their names in the files, which may lack the prefix of the model."""
    prefix = next(iter(family.names)).split(".")[0] + "."
    if any(name.startswith(prefix) for name in files):
        return {name: name for name in files}
    return {name if name.startswith("lm_head.") else prefix + name: name for name in files}


def _tied(source: WeightFiles, named: dict[str, str], over: set[str]) -> None:
    """Accept a second copy of tied weights if it is equal to the first; else `UserError`."""
    embedding = next((name for name in named if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if "lm_head.weight" in over and embedding:
        head, table = named["lm_head.weight"], named[embedding]
        if source.shape(head) != source.shape(table) or not np.array_equal(source(head), source(table)):
            raise UserError(
                f"{source.folder}: config.json ties the output layer to the embedding, and lm_head.weight is another "
                "table; set tie_word_embeddings to false if the model was trained so"
            )
        over.discard("lm_head.weight")


def _some(what: str, names) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(name[:80] for name in names[:3])}{more}" if names else ""
