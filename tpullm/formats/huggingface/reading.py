"""Reads a Hugging Face directory: its config, and its tensors, one at a time, into our stacked parameters.

Weights are safetensors, in one file or in shards with an index. They are foreign. What is read from a file's header is
bounded before the library reads it: the library holds the places and shapes of all tensors against the length of the
file.

A tensor of gpt-oss may be published as two, of MXFP4 (Open Compute Project, OCP Microscaling Formats, 2023): blocks
`[E, out, in / 32, 16]`, two numbers in a byte, and scales `[E, out, in / 32]`, powers of 2. They are read as one tensor
`[E, in, out]`, whose numbers bfloat16 holds.
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tpullm.formats.huggingface import configs, tensors
from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.recipe.schema import ModelConfig
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, warn
from tpullm.tokenizer.json_files import read_json

Tree = Any
DTYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("float16")}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Open files are mapped into memory. They are closed after this many bytes of tensors.
MAPPED_BYTES = 1 << 28
PART_BYTES = 1 << 26
MOST_HEADER_BYTES = 1 << 24  # about 150,000 tensors; the largest known has a tenth of it
MOST_MISSING = 100_000  # tensors that an error counts
BLOCKS, SCALES = "_blocks", "_scales"  # after the name of a tensor of MXFP4
# The numbers of a code of 4 bits; the eighth and later ones are the negative ones.
MXFP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
MXFP4 = np.concatenate([MXFP4, -MXFP4])
# Tables that older versions of transformers saved with the model, and recomputed when they loaded it.
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")


def read_config(folder: Path) -> tuple[ModelConfig, Family]:
    """The `ModelConfig` of the model in `folder`, and its family; `UserError` if we can't compute the model."""
    path = folder / "config.json"
    if not path.exists() and any((folder / name).exists() for name in ("recipe.yaml", "checkpoints")):
        raise UserError(f"{folder}: is a run and no published model; make one of it: tpullm export {folder} FOLDER")
    config = read_json(path)
    return configs.read(config, str(path)), FAMILIES[config["model_type"]]


class WeightFiles(ExitStack):
    """The tensors of a directory, by name; a context that closes the files.

    Args:
        single: the name of the file, if it is one.

    Attributes:
        files: the file of each tensor.
        size: the bytes of all files.

    Raises:
        UserError: files are missing or broken.
    """

    def __init__(self, folder: Path, single: str = SINGLE):
        super().__init__()
        self.folder, self._open, self._mapped = folder, {}, 0
        index = folder / INDEX
        if index.exists() and single == SINGLE:
            self.files = read_json(index).get("weight_map")
            if not isinstance(self.files, dict) or not all(isinstance(name, str) for name in self.files.values()):
                raise UserError(f"{index}: its weight_map does not name a file for each tensor; fetch it again")
        elif (folder / single).exists():
            self.files = dict.fromkeys(self._handle(single).keys(), single)
        else:
            raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; other formats of weights are not read")
        self.size = sum(map(self._size, sorted(set(self.files.values()))))
        packed = {name.removesuffix(BLOCKS) for name in self.files if name.endswith(BLOCKS)}
        self._packed = packed - self.files.keys()
        self._stored = dict(self.files)
        for name in self._packed:
            self.files[name] = self.files.pop(name + BLOCKS)
            self.files.pop(name + SCALES, None)

    def _size(self, name: str) -> int:
        try:
            return storage.check_file(storage.inside(self.folder, name, self.folder / INDEX))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.folder / name}: this shard is missing; fetch it again") from None

    def __call__(self, name: str) -> np.ndarray:
        """One tensor in its stored type, or if that is MXFP4 in bfloat16."""
        tensor = self._unpacked(name) if name in self._packed else self._tensor(name)
        self._mapped += tensor.nbytes
        if self._mapped > MAPPED_BYTES:
            self.close()
            self._open, self._mapped = {}, 0
        return tensor

    def _tensor(self, name: str) -> np.ndarray:
        return self._read(name, lambda handle: handle.get_tensor(name))

    def _unpacked(self, name: str) -> np.ndarray:
        """The numbers of a tensor of MXFP4, `[E, in, out]`."""
        blocks, scales = self._tensor(name + BLOCKS), self._tensor(name + SCALES)
        found = np.empty(self.shape(name), ml_dtypes.bfloat16)
        for expert, (codes, powers) in enumerate(zip(blocks, scales, strict=True)):
            pairs = np.stack([MXFP4[codes & 15], MXFP4[codes >> 4]], axis=-1)  # [out, blocks, 16, 2]
            with np.errstate(over="ignore"):  # to infinity, which `doctor` finds
                numbers = np.ldexp(pairs.reshape(*codes.shape[:-1], -1), powers[..., None].astype(np.int32) - 127)
            found[expert] = numbers.reshape(len(codes), -1).T
        return found

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """One tensor in its stored type, in parts of about `PART_BYTES` along its first dimension."""
        if name in self._packed:
            yield self(name)
            return
        shape, size = self.shape(name), self.numpy_dtype(name).itemsize
        rows = max(1, PART_BYTES // max(1, size * math.prod(shape[1:])))
        for first in range(0, shape[0] if shape else 1, rows):
            part = slice(first, min(first + rows, shape[0])) if shape else ...
            yield self._read(name, lambda handle, part=part: handle.get_slice(name)[part])

    def numpy_dtype(self, name: str) -> np.dtype:
        """The type of one tensor; `UserError` if it is no floating-point type, so the checkpoint is quantized."""
        if name in self._packed:
            return DTYPES["BF16"]
        kind = self._read(name, lambda handle: handle.get_slice(name).get_dtype())
        if kind not in DTYPES:
            raise UserError(f"{self.folder}: {name!s:.80} is {kind}; use the checkpoint that was not quantized")
        return DTYPES[kind]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        if name not in self._packed:
            return self._stored_shape(name)
        blocks = self._stored_shape(name + BLOCKS)
        kinds = [
            self._read(name + end, lambda handle, end=end: handle.get_slice(name + end).get_dtype())
            for end in (BLOCKS, SCALES)
            if name + end in self._stored
        ]
        if kinds != ["U8"] * 2 or blocks[3:] != (16,) or self._stored_shape(name + SCALES) != blocks[:3]:
            raise UserError(f"{self.folder}: {name!s:.80} is no pair of MXFP4's blocks and scales; fetch it again")
        return blocks[0], 32 * blocks[2], blocks[1]

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._read(name, lambda handle: handle.get_slice(name).get_shape()))

    def _read(self, name: str, read: Callable):
        try:
            return read(self._handle(self._stored[name]))
        except UserError:
            raise
        except Exception as error:  # the library raises errors of its own and of the standard library
            path = self.folder / self._stored[name]
            raise UserError(
                f"{path}: {name!s:.80} can't be read ({one_line(str(error), 200)}); fetch it again"
            ) from None

    def _handle(self, file: str):
        from safetensors import safe_open

        if file not in self._open:
            path = storage.inside(self.folder, file, self.folder)
            size = storage.check_file(path)
            with open(path, "rb") as start:
                header = int.from_bytes(start.read(8), "little")
            try:
                if not 2 <= header <= min(size - 8, MOST_HEADER_BYTES):
                    raise ValueError(f"a header of {header:,} bytes")
                self._open[file] = self.enter_context(safe_open(self.folder / file, framework="numpy"))
            except Exception as error:
                why = one_line(str(error), 200)
                raise UserError(f"{self.folder / file}: not a whole safetensors file ({why}); fetch it again") from None
        return self._open[file]


def check(source: WeightFiles, family: Family, shapes: Tree, axes: Tree) -> list[tuple]:
    """Check that every tensor is used once and every parameter is set once.

    Returns:
        For each tensor: its name in the files, the names of our parameters in it, its place in them,
        and the number of input dimensions.

    Raises:
        UserError: tensors are missing, unknown or of another shape; the error names them.
    """
    shapes, axes = tensors.flat(shapes), tensors.flat(axes)
    # Names in the files may lack the prefix of the model.
    prefix = next(iter(family.names)).split(".")[0] + "."
    lacks = not any(name.startswith(prefix) for name in source.files)
    named = {prefix + name if lacks and not name.startswith("lm_head.") else name: name for name in source.files}
    # The files say how many tensors there are. A config that asks for millions more is not counted to its end.
    wanted = list(itertools.islice(tensors.pieces(family, shapes), len(named) + MOST_MISSING))
    over = {name for name in named if not _COMPUTED.search(name)} - {name for name, _, _ in wanted}
    over -= _multi_token_layers(over, family, shapes)
    embedding = next((name for name in named if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if "lm_head.weight" in over and embedding:  # a second copy of tied weights
        head, table = named["lm_head.weight"], named[embedding]
        if source.shape(head) != source.shape(table) or not np.array_equal(source(head), source(table)):
            raise UserError(
                f"{source.folder}: config.json ties the output layer to the embedding, and lm_head.weight is another "
                "table; set tie_word_embeddings to false if the model was trained so"
            )
        over.discard("lm_head.weight")
    missing = [name for name, _, _ in wanted if name not in named]
    if which := some_names(missing, over):
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


def _multi_token_layers(names: Collection[str], family: Family, shapes: dict[str, Any]) -> set[str]:
    """Of names of tensors those in layers after the last one, if the family has such."""
    layers = sum({name.split(".")[0]: of.shape[0] for name, of in shapes.items() if "layers." in name}.values())
    found = {name: re.match(r"model\.layers\.(\d{1,9})\.", name) for name in names if family.multi_token}
    return {name for name, layer in found.items() if layer and int(layer[1]) >= layers}


def some_names(missing: Collection[str], unknown: Collection[str]) -> str:
    """Some of the names of tensors, in words; nothing if there are none."""
    found = []
    for what, names in (("missing", sorted(missing)), ("unknown", sorted(unknown))):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found += [f"{what} {', '.join(name[:80] for name in names[:3])}{more}"] if names else []
    return " and ".join(found)


class FolderWeights(WeightFiles):
    """The weights of a model in `folder`; arguments are those of `WeightFiles` and `check`."""

    def __init__(self, folder: Path, family: Family):
        super().__init__(folder)
        self._family = family

    def types(self, shapes: Tree, axes: Tree) -> dict[str, np.dtype]:
        """See `formats.published.Weights`; it is float32 if the tensors of a parameter have several types."""
        found: dict[str, set[np.dtype]] = {}
        for name, ours, *_ in check(self, self._family, shapes, axes):
            for key in ours:
                found.setdefault(key, set()).add(self.numpy_dtype(name))
        return {key: kinds.pop() if len(kinds) == 1 else np.dtype("float32") for key, kinds in found.items()}

    def kept(self, shapes: Tree, axes: Tree) -> dict[str, str]:
        """See `Weights`: no codes are read."""
        return {}

    def parts_of(self, shapes: Tree, axes: Tree, done: Callable[[int], None]) -> Iterator[tuple]:
        """See `Weights`."""
        flat = tensors.flat(shapes)
        if _multi_token_layers(self.files, self._family, flat):
            warn(f"{self.folder}: layers for multi-token prediction ({self._family.multi_token}) are left out")
        for name, ours, place, inputs in check(self, self._family, shapes, axes):
            tensor = self(name)
            parts = tensors.split(self._family, tensor, [flat[key].shape[len(place) :] for key in ours], inputs)
            yield from ((key, place, part) for key, part in zip(ours, parts, strict=True))
            done(tensor.nbytes)
