"""Reads files of tokens that other programs wrote, where they are, through memory maps."""

import functools
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpullm.data.token_files import TokenFile
from tpullm.errors import UserError

MOST_MAPPED = 512  # files at once: each map takes one of the 1,024 files that a process may have open


class MappedFiles:
    """Reads files of tokens, side by side as one flat array, through memory maps. No range crosses two files."""

    def __init__(self, files: Sequence[TokenFile], most: int):
        """Check that each file is there and as long as it was; ids above `most` are an error when they are read.

        Raises:
            UserError: a file is missing, or has another size.
        """
        self._files, self._most = files, most
        self._starts = np.cumsum([0, *(file.tokens for file in files)])
        for file in files:
            size = os.stat(file.path).st_size if os.path.isfile(file.path) else -1
            if size != file.file_bytes:
                there = f"has {size:,} bytes now, and not {file.file_bytes:,}" if size >= 0 else "is not there now"
                raise UserError(f"{file.path}: {there} as when `tpullm tokenize` read it; put it back on every host")

    def read(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`[begin, end)` of each pair, concatenated; int32."""
        pieces = self._pieces(begins, ends, [(file.path, file.dtype, file.first_byte) for file in self._files])
        tokens = np.concatenate([*pieces, np.zeros(0, np.uint8)])
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= self._most:
            raise UserError(f"{self._files[0].path.parent}: a file there has changed; run `tpullm tokenize` again")
        return tokens.astype(np.int32)

    def weights(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The weight of each token: 0 where its file says that it is not learned, else 1; float32."""
        if not any(file.loss for file in self._files):
            return np.ones(int((ends - begins).sum()), np.float32)
        pieces = self._pieces(begins, ends, [(file.loss, "u1", 0) for file in self._files])
        return (np.concatenate([*pieces, np.zeros(0, np.uint8)]) != 0).astype(np.float32)

    def _pieces(self, begins: np.ndarray, ends: np.ndarray, places: list[tuple]) -> list[np.ndarray]:
        """A view of each range; ones where there is no file."""
        numbers = np.searchsorted(self._starts, begins, side="right") - 1
        numbers = np.minimum(numbers, len(self._files) - 1)
        starts = self._starts[numbers]
        found = []
        for number, low, high in zip(
            numbers.tolist(), (begins - starts).tolist(), (ends - starts).tolist(), strict=True
        ):
            path, dtype, first_byte = places[number]
            if path is None or low == high:
                found.append(np.ones(high - low, np.uint8))
                continue
            mapped, values = _mapped_file(path, dtype, first_byte, self._files[number].tokens)
            begin = (first_byte + low * values.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, begin, first_byte + high * values.itemsize - begin)
            found.append(values[low:high])
        return found


@functools.lru_cache(MOST_MAPPED)
def _mapped_file(path: Path, dtype: str, first_byte: int, count: int) -> tuple[mmap.mmap, np.ndarray]:
    """The map of a file, and the values in it."""
    with open(path, "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return mapped, np.frombuffer(mapped, dtype, count, first_byte)
