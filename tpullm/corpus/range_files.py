"""Files of 64-bit numbers in slices, of which a reader takes one: what the rounds of collect leave for each other."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from tpullm import storage


def count(rows: int, most: int) -> int:
    """How many ranges of keys keep each below `most` rows: a power of 2. Keys are hashes, so ranges are about even."""
    return 1 << (rows // most).bit_length()


def bounds(keys: np.ndarray, ranges: int) -> np.ndarray:
    """Where each of the ranges begins in sorted keys, and where the last ends: int64 [ranges + 1]."""
    starts = np.arange(1, ranges, dtype=np.uint64) * np.uint64((1 << 64) // ranges if ranges > 1 else 0)
    return np.concatenate([[0], np.searchsorted(keys, starts), [len(keys)]]).astype(np.int64)


def write(path: Path, starts: np.ndarray, rows: np.ndarray) -> None:
    """Write rows, uint64 [rows] or [rows, width], and where each slice of them begins and the last ends."""
    with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
        for array in (np.array([len(starts)], np.int64), starts.astype(np.int64), rows):
            file.write(array.tobytes())


def read(path: Path, number: int, width: int = 1) -> np.ndarray:
    """One slice of a file: uint64 [rows, width]. Of the starts two are read: a corpus has as many files as slices."""
    with path.open("rb") as file:
        (starts,) = _numbers(file, 0, 1)
        first, stop = _numbers(file, 1 + number, 2)
        rows = _numbers(file, 1 + int(starts) + width * int(first), width * int(stop - first))
    return rows.view(np.uint64).reshape(-1, width)


def _numbers(file: BinaryIO, place: int, count: int) -> np.ndarray:
    file.seek(8 * place)
    return np.frombuffer(file.read(8 * count), np.int64)
