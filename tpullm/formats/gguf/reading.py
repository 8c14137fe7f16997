"""Reads the head of a GGUF file of others, within bounds, and the values of its tensors piece by piece.

Every number of the file is held against its length before memory is asked for. (`gguf`'s own reader trusts them.)
Source: the layout in github.com/ggml-org/ggml/blob/master/docs/gguf.md.
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

MOST_SETTINGS, MOST_TENSORS, MOST_NAME = 1 << 16, 1 << 18, 1 << 10
MOST_BYTES = 1 << 28  # of the head; vocabularies and merges of the largest known take 20 MB
MOST_VALUES = 1 << 22  # in all lists: tokens, kinds, scores and merges of the largest known are 1.3 million
_AT_ONCE = 1 << 22  # bytes of a tensor that are read at once
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


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
        head = _Head(file, path, length)
        if head.take(4) != b"GGUF":
            raise head.wrong("is no GGUF file")
        version = head.number("I")
        if version not in (2, 3):
            raise head.wrong(f"is of version {version}, known are 2 and 3")
        tensors, settings = head.count("tensors", MOST_TENSORS), head.count("settings", MOST_SETTINGS)
        found = {}
        for _ in range(settings):
            name = head.text(MOST_NAME)
            if name in found:
                raise head.wrong(f"has two settings {name!r:.80}")
            found[name] = head.value(head.number("I"))
        described = [head.tensor() for _ in range(tensors)]
        return GgufFile(path, found, _placed(head, described, found.get("general.alignment", 32)))


class _Head:
    """The head of a file, read forward; `UserError` where it ends early or is too long."""

    def __init__(self, file: BinaryIO, path: Path, length: int):
        self._file, self._path, self.length, self._left = file, path, length, MOST_VALUES

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}; it is broken or hostile, fetch or export it again")

    def place(self) -> int:
        return self._file.tell()

    def take(self, size: int) -> bytes:
        if size > min(self.length, MOST_BYTES) - self.place():
            raise self.wrong("ends within its head" if size <= MOST_BYTES else "has a head that is too long")
        return self._file.read(size)

    def number(self, kind: str):
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def count(self, what: str, most: int) -> int:
        found = self.number("Q")
        if found > most:
            raise self.wrong(f"says that it has {found:,} {what}; at most {most:,} are read")
        return found

    def text(self, most: int) -> str:
        size = self.number("Q")
        if size > most:
            raise self.wrong(f"has a text of {size:,} bytes; at most {most:,} are read")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong("has a text that is no UTF-8") from None

    def value(self, kind: int, is_in_array: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text(1 << 24)
        if kind != _ARRAY or is_in_array:
            raise self.wrong(f"has a value of the unknown type {kind}")
        of, count = self.number("I"), self.number("Q")
        smallest = struct.calcsize(f"<{_NUMBERS[of]}") if of in _NUMBERS else 8
        if count * smallest > self.length - self.place() or count > self._left:
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


def _placed(head: _Head, described: list[tuple], alignment: Any) -> list[GgufTensor]:
    """The tensors with their places, which lie in the file, one after the other."""
    import gguf

    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise head.wrong(f"has an alignment of {alignment!r:.40}")
    start = -(-head.place() // alignment) * alignment
    end, found, names = 0, [], set()
    for name, shape, kind, offset in sorted(described, key=lambda tensor: tensor[3]):
        block, bytes_of_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        size = math.prod(shape) // block * bytes_of_block
        if name in names:
            raise head.wrong(f"has two tensors {name!r:.80}")
        if not all(shape) or shape[-1] % block:
            raise head.wrong(f"has a tensor {name!r:.80} of {list(shape)}, which {kind} can't hold")
        if offset < end or offset % alignment:
            raise head.wrong(f"has a tensor {name!r:.80} that lies on another one")
        if start + offset + size > head.length:
            raise head.wrong(f"ends before the tensor {name!r:.80}, it is cut off")
        names.add(name)
        end = offset + size
        found.append(GgufTensor(name, shape, kind, start + offset, size))
    return found


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
