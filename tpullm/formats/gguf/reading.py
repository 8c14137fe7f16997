"""Reads the head of a GGUF file of others, within bounds, and the values of its tensors piece by piece.

Every number of the file is held against the file's length before memory is asked for. The layout is that of
github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the values are dequantized by `gguf`.

`gguf.GGUFReader` makes an array of every value in a list. In the child with limits (`system/process/limited.py`: 20 s,
1 GiB) it would refuse good files: of a head as large as Gemma 3's (262,208 tokens, 515,000 merges) it takes 21 s and
1.4 GiB, and this module 1.4 s and 68 MiB (gguf 0.12.0.1, one busy core). A list of 4 MB takes 44 s and 3.0 GiB there.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tpullm.system.errors import UserError
from tpullm.system.storage import check_file

MOST_SETTINGS, MOST_TENSORS, MOST_NAME, MOST_TEXT = 1 << 16, 1 << 18, 1 << 10, 1 << 24
MOST_BYTES = 1 << 28  # of the head; vocabularies and merges of the largest known take 20 MB
MOST_VALUES = 1 << 22  # in all lists: tokens, kinds, scores and merges of the largest known are 1.3 million
_AT_ONCE = 1 << 22  # bytes of a tensor that are read at once
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def check_installed() -> None:
    """`UserError` if the package `gguf` is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("GGUF files need a package that is not installed; run: pip install 'tpullm[gguf]'") from None


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: its name, its shape as numpy has it, its type, the offset and the bytes of its data."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """The settings and the tensors of a file."""

    path: Path
    settings: dict[str, Any]
    tensors: list[GgufTensor]


def read(path: Path) -> GgufFile:
    """The head of a file.

    Raises:
        UserError: the file is no GGUF file, it is cut off, or a number in it can't be true.
    """
    length = check_file(path)
    with open(path, "rb") as file:
        head, settings = _Head(file, path, length), {}
        if head.take(4) != b"GGUF":
            raise UserError(f"{path}: is no GGUF file, the only file that can be a MODEL; name one, or a folder")
        if (version := head.number("I")) not in (2, 3):
            raise head.wrong(f"is of version {version}, known are 2 and 3")
        tensors = head.bounded("says that it has {:,} tensors", MOST_TENSORS)
        for _ in range(head.bounded("says that it has {:,} settings", MOST_SETTINGS)):
            name = head.text(MOST_NAME)
            if name in settings:
                raise head.wrong(f"has two settings {name!r:.80}")
            settings[name] = head.value(head.number("I"))
        described = [head.tensor() for _ in range(tensors)]
        return GgufFile(path, settings, head.placed(described, settings.get("general.alignment", 32)))


def values(file: GgufFile, tensor: GgufTensor) -> Iterator[np.ndarray]:
    """The values of a tensor in float32, some rows at a time."""
    import gguf

    kind = gguf.GGMLQuantizationType[tensor.kind]
    block, bytes_of_block = gguf.GGML_QUANT_SIZES[kind]
    step = _AT_ONCE // bytes_of_block * bytes_of_block
    with open(file.path, "rb") as opened:
        opened.seek(tensor.start)
        for first in range(0, tensor.size, step):
            part = np.frombuffer(opened.read(min(step, tensor.size - first)), np.uint8)
            yield gguf.dequantize(part, kind)


def codes(file: GgufFile, tensor: GgufTensor) -> tuple[np.ndarray, np.ndarray]:
    """The codes of a tensor of Q8_0 (int8) or Q4_0 (uint8, plus 8), and the scale of each of them, float16."""
    with open(file.path, "rb") as opened:
        opened.seek(tensor.start)
        blocks = np.frombuffer(opened.read(tensor.size), np.uint8).reshape(-1, 34 if tensor.kind == "Q8_0" else 18)
    scales, found = blocks[:, :2].view(np.float16), blocks[:, 2:]
    if tensor.kind == "Q8_0":
        found = found.view(np.int8)
    else:
        found = np.concatenate([found & 15, found >> 4], axis=1)  # a byte has inputs n and n + 16
    return found.reshape(tensor.shape), np.broadcast_to(scales, (len(scales), 32)).reshape(tensor.shape)


class _Head:
    """The head of a file, read forward; `UserError` where it ends early or is too long."""

    def __init__(self, file: BinaryIO, path: Path, length: int):
        self._file, self._path, self._length, self._left = file, path, length, MOST_VALUES

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}; it is broken or hostile, fetch or export it again")

    def take(self, size: int) -> bytes:
        if size > min(self._length, MOST_BYTES) - self._file.tell():
            raise self.wrong("ends within its head" if size <= MOST_BYTES else "has a head that is too long")
        return self._file.read(size)

    def number(self, kind: str):
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def bounded(self, what: str, most: int) -> int:
        if (found := self.number("Q")) > most:
            raise self.wrong(f"{what.format(found)}; at most {most:,} are read")
        return found

    def text(self, most: int) -> str:
        try:
            return self.take(self.bounded("has a text of {:,} bytes", most)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong("has a text that is no UTF-8") from None

    def value(self, kind: int, is_in_array: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text(MOST_TEXT)
        if kind != _ARRAY or is_in_array:
            raise self.wrong(f"has a value of the unknown type {kind}")
        of, count = self.number("I"), self.number("Q")
        smallest = struct.calcsize(f"<{_NUMBERS[of]}") if of in _NUMBERS else 8
        if count * smallest > self._length - self._file.tell() or count > self._left:
            raise self.wrong(f"has a list of {count:,} values; so many don't fit into it, or are not read")
        self._left -= count
        if of in _NUMBERS:
            return list(struct.unpack(f"<{count}{_NUMBERS[of]}", self.take(count * smallest)))
        return [self.value(of, is_in_array=True) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        import gguf

        name, dimensions = self.text(MOST_NAME), self.number("I")
        if not 1 <= dimensions <= 4:
            raise self.wrong(f"has a tensor {name!r:.80} of {dimensions} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        kind, offset = self.number("I"), self.number("Q")
        try:
            return name, shape, gguf.GGMLQuantizationType(kind).name, offset
        except ValueError:
            raise self.wrong(f"has a tensor {name!r:.80} of the unknown type {kind}") from None

    def placed(self, described: list[tuple], alignment: Any) -> list[GgufTensor]:
        """The tensors with their places, which lie in the file, one after the other."""
        import gguf

        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
            raise self.wrong(f"has an alignment of {alignment!r:.40}")
        start = -(-self._file.tell() // alignment) * alignment
        end, found = 0, {}
        for name, shape, kind, offset in sorted(described, key=lambda tensor: tensor[3]):
            block, bytes_of_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            size = math.prod(shape) // block * bytes_of_block
            if name in found:
                raise self.wrong(f"has two tensors {name!r:.80}")
            if not all(shape) or shape[-1] % block:
                raise self.wrong(f"has a tensor {name!r:.80} of {list(shape)}, which {kind} can't hold")
            if offset < end or offset % alignment:
                raise self.wrong(f"has a tensor {name!r:.80} that lies on another one")
            if start + offset + size > self._length:
                raise self.wrong(f"ends before the tensor {name!r:.80}, it is cut off")
            end = offset + size
            found[name] = GgufTensor(name, shape, kind, start + offset, size)
        return list(found.values())
