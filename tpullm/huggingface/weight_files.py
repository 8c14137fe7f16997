"""The files of a model's weights: safetensors, in one file or in shards with an index."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np

from tpullm.errors import UserError
from tpullm.tokenizer.json_files import read_json

DTYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("float16")}
TYPE_NAMES = {dtype.name: name for name, dtype in DTYPES.items()}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Open files are mapped into memory. They are closed after this many bytes of tensors.
MAPPED_BYTES = 1 << 28


class WeightFiles:
    """The tensors of a directory, by name. Open it with `opened`.

    Attributes:
        files: the file of each tensor.
        size: the bytes of all files.
    """

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder, self._stack, self._open, self._mapped = folder, stack, {}, 0
        index = folder / INDEX
        if index.exists():
            self.files = read_json(index).get("weight_map", {})
        elif (folder / SINGLE).exists():
            self.files = dict.fromkeys(self._handle(SINGLE).keys(), SINGLE)
        else:
            raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; other formats of weights are not read")
        for name in sorted(set(self.files.values())):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: this shard is missing; fetch it again")
        self.size = sum((folder / name).stat().st_size for name in set(self.files.values()))

    def __call__(self, name: str) -> np.ndarray:
        """One tensor in its stored type."""
        tensor = self._read(name, lambda handle: handle.get_tensor(name))
        self._mapped += tensor.nbytes
        if self._mapped > MAPPED_BYTES:
            self._stack.close()
            self._open, self._mapped = {}, 0
        return tensor

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
                f"{self.folder / self.files[name]}: {name} can't be read ({error}); fetch it again"
            ) from None

    def _handle(self, file: str):
        from safetensors import safe_open

        if file not in self._open:
            try:
                self._open[file] = self._stack.enter_context(safe_open(self.folder / file, framework="numpy"))
            except Exception as error:
                raise UserError(
                    f"{self.folder / file}: not a whole safetensors file ({error}); fetch it again"
                ) from None
        return self._open[file]


@contextmanager
def opened(folder: Path) -> Iterator[WeightFiles]:
    """The tensors of a directory; `UserError` if files are missing or broken."""
    with ExitStack() as stack:
        yield WeightFiles(folder, stack)
