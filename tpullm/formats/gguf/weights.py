"""The weights of a GGUF file in our layout, one tensor at a time, dequantized by `gguf`."""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tpullm import tokenizer
from tpullm.formats.gguf import configs, reading, tokenizer_files
from tpullm.formats.gguf.architectures import ARCHITECTURES
from tpullm.formats.gguf.layout import Layout, Tensor
from tpullm.formats.gguf.reading import GgufFile, GgufTensor
from tpullm.formats.huggingface import tensors
from tpullm.formats.huggingface.reading import DTYPES, Tree, some_names
from tpullm.recipe import schema
from tpullm.recipe.schema import ModelConfig
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.process import cores
from tpullm.system.process.limited import Limited

# Of MXFP4 a number is one of 16 times a power of 2. Other quantized types need more digits than 16 bits have: their
# scale has up to 11, times a code of 3 to 8, and a minimum is taken off.
_STORED = DTYPES | {"MXFP4": DTYPES["BF16"]}
_BYTES_AHEAD = 1 << 27  # of tensors that are read before they are asked for, as float32
KEPT = {"Q8_0": "int8", "Q4_0": "int4"}  # types whose codes are multiplied with as they are


def head(path: Path) -> tuple[dict, list[GgufTensor]]:
    """What the head of a file says, read by a child with limits.

    Returns:
        The files of a folder in the format of Hugging Face for it, by name, as JSON: `config.json` and those of the
        tokenizer. And its tensors.

    Raises:
        UserError: it is no GGUF file, it is broken, or we don't compute its model.
    """

    def read() -> bytes:
        with closing(Limited()) as child:
            return json.dumps(child.call(str(path), "tpullm.formats.gguf.weights:described", str(path))).encode()

    state = path.stat()
    version = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    code = storage.hash_code(__file__, tokenizer.__file__, tensors.__file__, schema.__file__)
    version += [metadata.version("gguf")]
    files, found = json.loads(storage.kept("gguf", [str(path), version, code], read))
    return files, [GgufTensor(name, tuple(shape), *others) for name, shape, *others in found]


def described(path: str) -> tuple[dict, list]:
    """What the child of `head` does."""
    file = reading.read(Path(path))
    config = configs.config_json(file)
    files = tokenizer_files.tokenizer_files(file.settings, config["vocab_size"], path)
    return files | {"config.json": config}, [list(vars(tensor).values()) for tensor in file.tensors]


class GgufWeights(nullcontext):
    """The weights of a model in a file; it implements `formats.published.Weights`."""

    def __init__(self, path: Path, found: list[GgufTensor], config: ModelConfig, model_type: str):
        super().__init__(self)
        self._file, self._config, self._architecture = GgufFile(path, {}, found), config, ARCHITECTURES[model_type]
        self.size = sum(tensor.size for tensor in found)

    def types(self, shapes: Tree, axes: Tree) -> dict[str, np.dtype]:
        """See `Weights`; the type that holds every number of the file, float32 if the tensors are of several types."""
        import gguf

        found: dict[str, set[str]] = {}
        for tensor, of_file in self._checked(shapes, axes)[1]:
            kind = gguf.GGMLQuantizationType[of_file.kind]
            try:
                gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
            except NotImplementedError:
                why = f"{of_file.name} is of type {kind.name}, which is not read"
                raise UserError(f"{self._file.path}: {why}; use a file of another type") from None
            for key in tensor.ours:
                found.setdefault(key, set()).add(kind.name)
        return {key: _STORED.get("+".join(kinds), DTYPES["F32"]) for key, kinds in found.items()}

    def _checked(self, shapes: Tree, axes: Tree) -> tuple[Layout, list[tuple[Tensor, GgufTensor]]]:
        """Every tensor is used once and every parameter is set once; else a `UserError`."""
        layout = Layout(self._config, self._architecture, tensors.flat(shapes), tensors.flat(axes))
        there = {tensor.name: tensor for tensor in self._file.tensors if tensor.name not in configs.DIVISORS}
        wanted = {tensor.name: tensor for tensor in layout.tensors()}
        if why := some_names(wanted.keys() - there.keys(), there.keys() - wanted.keys()):
            raise UserError(f"{self._file.path}: {why}; its settings and its tensors are not of the same model")
        for name, tensor in wanted.items():
            if there[name].shape != tensor.shape:
                asked = f"{list(there[name].shape)} instead of {list(tensor.shape)}"
                raise UserError(f"{self._file.path}: {name} is {asked}; its settings are of another model")
        return layout, [(tensor, there[name]) for name, tensor in wanted.items()]

    def kept(self, shapes: Tree, axes: Tree) -> dict[str, str]:
        """The parameters that are Q8_0 or Q4_0 in all layers, as kinds of `Quantized`."""
        found: dict[str, set[str]] = {}
        for tensor, of_file in self._checked(shapes, axes)[1]:
            for key in tensor.ours:
                found.setdefault(key, set()).add(KEPT.get(of_file.kind, ""))
        return {key: kind for key, (kind, *others) in found.items() if kind and not others}

    def parts_of(self, shapes: Tree, axes: Tree, done: Callable[[int], None]) -> Iterator[tuple]:
        """See `Weights`. Of a target that is `Quantized` with scales in float16, the codes of the file.

        Threads read the tensors that come next: of a large model one, of a small one as many as there are cores.
        """
        from tpullm.model.quantized import from_blocks, is_quantized  # imports JAX, which the child of `head` need not

        layout, wanted = self._checked(shapes, axes)
        targets = tensors.flat(shapes)

        def parts(tensor: Tensor, of_file: GgufTensor) -> list[Any]:
            if is_quantized(first := targets[tensor.ours[0]]) and first.scales.dtype == np.float16:
                codes, scales = (layout.split(tensor, of) for of in reading.codes(self._file, of_file))
                each = zip(tensor.ours, codes, scales, strict=True)
                return [from_blocks(own, repeated, targets[key]) for key, own, repeated in each]
            values, filled = np.empty(tensor.shape, np.float32), 0
            for part in reading.values(self._file, of_file):
                values.reshape(-1)[filled : filled + part.size] = part
                filled += part.size
            return layout.split(tensor, values)

        with ThreadPoolExecutor(cores()) as pool:
            begun, left, sizes = deque(), deque(wanted), [4 * math.prod(tensor.shape) for tensor, _ in wanted]
            for number, (tensor, of_file) in enumerate(wanted):
                while left and (not begun or sum(sizes[number : len(sizes) - len(left) + 1]) <= _BYTES_AHEAD):
                    begun.append(pool.submit(parts, *left.popleft()))
                place = () if tensor.layer is None else (tensor.layer,)
                yield from ((key, place, part) for key, part in zip(tensor.ours, begun.popleft().result(), strict=True))
                done(of_file.size)
