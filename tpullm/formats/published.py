"""A model of others on disk: a folder in the format of Hugging Face, or a GGUF file.

The head of a GGUF file has what a folder has in `config.json` and in the files of its tokenizer. These files are made
of it, in a temporary folder, and from there on both are read alike, but for the weights.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from tpullm.formats.gguf import weights as gguf
from tpullm.formats.gguf.reading import GgufTensor, check_installed
from tpullm.formats.huggingface import reading, tensors
from tpullm.formats.huggingface.families import Family
from tpullm.model.packing import packed
from tpullm.model.quantized import is_quantized
from tpullm.recipe.schema import ModelConfig
from tpullm.system import storage

Tree = Any


class Weights(Protocol):
    """The weights of a model; a context that closes its files.

    Attributes:
        size: their bytes.
    """

    size: int

    def types(self, shapes: Tree, axes: Tree) -> dict[str, np.dtype]:
        """The type of each of our parameters in the files, by flat name.

        Args:
            shapes, axes: shapes and logical axes of our parameters.

        Raises:
            UserError: tensors are missing, unknown, of another shape or of a type that is not read; the error names
                them.
        """

    def kept(self, shapes: Tree, axes: Tree) -> dict[str, str]:
        """The parameters whose codes a `Quantized` can keep: flat name → its kind. Arguments are those of `types`."""

    def parts_of(self, shapes: Tree, axes: Tree, done: Callable[[int], None]) -> Iterator[tuple]:
        """Our parameters in parts: flat name, place in the parameter, and the values there.

        Arguments and errors are those of `types`; `done` is called with the bytes of each tensor.
        """


def fill(
    weights: Weights,
    targets: Tree,
    axes: Tree,
    place: Callable[[Any, Any], Any],
    done: Callable[[int], None],
    packs: bool = False,
) -> Tree:
    """All parameters, stacked ones as `[L, ...]`.

    Memory holds the results of `place`, one parameter and one tensor.

    Args:
        targets: the shape and type of each of our parameters.
        axes: the logical axes of each of our parameters.
        place: called with each complete parameter and its target; its result is in the returned tree.
        done: called with the bytes of each tensor.
        packs: pack matrices, each tensor as it is read, if their sizes allow it. 135 M parameters, from Q4_1: 0.6 s of
            processor time; 2.2 if whole parameters are made first, whose inputs don't lie together.

    Raises:
        UserError: as of `Weights.types`.
    """
    found, held, flat, flat_axes = {}, {}, tensors.flat(targets), tensors.flat(axes)
    left = {key: math.prod(target.shape) for key, target in flat.items()}
    for key, where, part in weights.parts_of(targets, axes, done):
        target = flat[key]
        left[key] -= math.prod(part.shape)
        part = part if is_quantized(part) else part.astype(target.dtype, copy=False)
        part = packed(part, flat_axes[key]) if packs else part
        if key not in held:
            held[key] = jax.tree.map(partial(_empty, target.shape[: len(where)]), part)
        for own, new in zip(jax.tree.leaves(held[key]), jax.tree.leaves(part), strict=True):
            own[where] = new
        if not left[key]:
            found[key] = place(held.pop(key), target)
    return tensors.nested(found)


def _empty(stacked: tuple[int, ...], part: np.ndarray) -> np.ndarray:
    """Room for so many of a part, at a multiple of 64 bytes, so that JAX uses it on a CPU without a copy."""
    shape = *stacked, *part.shape
    memory = np.empty(math.prod(shape) * part.itemsize + 64, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :][: len(memory) - 64]
    return aligned.view(part.dtype).reshape(shape)


@dataclass(frozen=True)
class Published:
    """A model of others.

    Args:
        path: as it was given.
        folder: on this machine, with `config.json` and, if the model has one, the files of a tokenizer.
        config: what the model computes.
        family: its family.
        weights: opens its weights (`Weights`).
    """

    path: Path
    folder: Path
    config: ModelConfig
    family: Family
    weights: Callable[[], AbstractContextManager]


def published(path: Path) -> Published:
    """The model in a folder in the format of Hugging Face, or in a GGUF file.

    Raises:
        UserError: it is broken, or we don't compute its model.
    """
    here = storage.local_copy(path)
    if not here.is_file():
        config, family = reading.read_config(here)
        return Published(path, here, config, family, lambda: reading.FolderWeights(here, family))
    state = here.stat()
    folder, found = _files_of_head(here, state.st_size, state.st_mtime_ns)
    config, family = reading.read_config(folder)
    model_type = storage.read_json(folder / "config.json")["model_type"]
    return Published(path, folder, config, family, lambda: gguf.GgufWeights(here, found, config, model_type))


_KEPT: list[tempfile.TemporaryDirectory] = []  # until the process ends, as tokenizers read them later


@cache
def _files_of_head(path: Path, size: int, changed: int) -> tuple[Path, list[GgufTensor]]:
    """A folder with what the head of a file says, and the tensors; a file of another size or time is read again."""
    check_installed()
    files, found = gguf.head(path)
    _KEPT.append(tempfile.TemporaryDirectory(prefix="tpullm-"))
    folder = Path(_KEPT[-1].name) / path.name  # errors name it
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder, found
