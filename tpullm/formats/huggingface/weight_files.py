"""The files of a model's weights: safetensors, in one file or in shards with an index.

They are foreign. What is read from a file's header is bounded before the library reads it: the library holds the places
and shapes of all tensors against the length of the file.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line
from tpullm.tokenizer.json_files import read_json

DTYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("float16")}
TYPE_NAMES = {dtype.name: name for name, dtype in DTYPES.items()}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Open files are mapped into memory. They are closed after this many bytes of tensors.
MAPPED_BYTES = 1 << 28
PART_BYTES = 1 << 26
MOST_HEADER_BYTES = 1 << 24  # about 150,000 tensors; the largest known has a tenth of it


class WeightFiles:
    """The tensors of a directory, by name. Open it with `opened`.

    Attributes:
        files: the file of each tensor.
        size: the bytes of all files.
    """

    def __init__(self, folder: Path, stack: ExitStack, single: str = SINGLE):
        self.folder, self._stack, self._open, self._mapped = folder, stack, {}, 0
        index = folder / INDEX
        if index.exists() and single == SINGLE:
            self.files = _weight_map(index)
        elif (folder / single).exists():
            self.files = dict.fromkeys(self._handle(single).keys(), single)
        else:
            raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; other formats of weights are not read")
        self.size = sum(_size(folder, name) for name in sorted(set(self.files.values())))

    def __call__(self, name: str) -> np.ndarray:
        """One tensor in its stored type."""
        tensor = self._read(name, lambda handle: handle.get_tensor(name))
        self._mapped += tensor.nbytes
        if self._mapped > MAPPED_BYTES:
            self._stack.close()
            self._open, self._mapped = {}, 0
        return tensor

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """One tensor in its stored type, in parts of about `PART_BYTES` along its first dimension."""
        shape, size = self.shape(name), self.numpy_dtype(name).itemsize
        rows = max(1, PART_BYTES // max(1, size * math.prod(shape[1:])))
        for first in range(0, shape[0] if shape else 1, rows):
            part = slice(first, min(first + rows, shape[0])) if shape else ...
            yield self._read(name, lambda handle, part=part: handle.get_slice(name)[part])

    def numpy_dtype(self, name: str) -> np.dtype:
        """The type of one tensor; `UserError` if it is no floating-point type, so the checkpoint is quantized."""
        kind = self.dtype(name)
        if kind not in DTYPES:
            raise UserError(f"{self.folder}: {name!s:.80} is {kind}; use the checkpoint that was not quantized")
        return DTYPES[kind]

    def dtype(self, name: str) -> str:
        """The type of one tensor, as safetensors names it: `BF16`."""
        return self._read(name, lambda handle: handle.get_slice(name).get_dtype())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._read(name, lambda handle: handle.get_slice(name).get_shape()))

    def _read(self, name: str, read: Callable):
        try:
            return read(self._handle(self.files[name]))
        except UserError:
            raise
        except Exception as error:  # the library raises errors of its own and of the standard library
            raise UserError(
                f"{self.folder / self.files[name]}: {name!s:.80} can't be read ({one_line(str(error), 200)}); fetch it "
                "again"
            ) from None

    def _handle(self, file: str):
        from safetensors import safe_open

        if file not in self._open:
            _check_header(storage.inside(self.folder, file, self.folder))
            try:
                self._open[file] = self._stack.enter_context(safe_open(self.folder / file, framework="numpy"))
            except Exception as error:
                raise UserError(
                    f"{self.folder / file}: not a whole safetensors file ({one_line(str(error), 200)}); fetch it again"
                ) from None
        return self._open[file]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index says."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{index}: its weight_map does not name a file for each tensor; fetch it again")
    return found


def _size(folder: Path, name: str) -> int:
    """The bytes of a shard; `UserError` if there is no such file in the folder."""
    try:
        return storage.check_file(storage.inside(folder, name, folder / INDEX))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder / name}: this shard is missing; fetch it again") from None


def _check_header(path: Path) -> None:
    """`UserError` if the header of a file is longer than the file or than any that is known."""
    size = storage.check_file(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if not 2 <= header <= min(size - 8, MOST_HEADER_BYTES):
        raise UserError(f"{path}: not a whole safetensors file (a header of {header:,} bytes); fetch it again")


@contextmanager
def opened(folder: Path, single: str = SINGLE) -> Iterator[WeightFiles]:
    """The tensors of a directory; `UserError` if files are missing or broken.

    Args:
        single: the name of the file, if it is one.
    """
    with ExitStack() as stack:
        yield WeightFiles(folder, stack, single)
