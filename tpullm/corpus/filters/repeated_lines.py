"""Lines that stand in many documents of a corpus: menus, notices, footers that no rule for a single page can see.

Map: each part of the corpus leaves the hashes of its lines and in how many of its documents each is (`LineCounts`).
Reduce: each range of hashes is summed by itself over all parts (`ranges`, `repeated`). Then any reader leaves out the
lines whose hash is in the result (`without`). The result is a function of the documents alone: not of how they are cut
into parts, nor of the order or the number of the ranges. Every step is bounded in memory.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpullm import storage

COUNT = np.dtype([("key", "<u8"), ("documents", "<u4")])  # of one line; sorted by key in a file
LEAST_BYTES = 24  # of UTF-8: eight ideographs or a short sentence. 「はい」 and "He said:" may be repeated.
DIGITS = re.compile(r"\d+")
MOST_HELD = 1 << 21  # keys in memory before they are counted: 16 MB
MOST_IN_RANGE = 1 << 22  # counts of one range: 50 MB, and 220 MB while they are sorted; 15 million a second


class LineCounts:
    """The lines of one part, counted while its documents pass."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, COUNT)
        self._keys: list[np.ndarray] = []
        self._held = 0

    def add(self, text: str) -> None:
        """Count the lines of one document, each line once."""
        found = np.unique(np.array([_key(line) for line in text.split("\n") if _counts(line)], np.uint64))
        self._keys.append(found)
        self._held += len(found)
        if self._held > MOST_HELD:
            self._counts = self.counts()
            self._keys, self._held = [], 0

    def counts(self) -> np.ndarray:
        """What was counted so far: [lines] of `COUNT`, sorted."""
        keys, documents = np.unique(np.concatenate([*self._keys, np.zeros(0, np.uint64)]), return_counts=True)
        new = np.empty(len(keys), COUNT)
        new["key"], new["documents"] = keys, documents
        return _summed([self._counts, new])

    def save(self, path: Path) -> None:
        """Write what was counted; the file appears whole."""
        with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, self.counts())


def ranges(parts: Sequence[Path]) -> list[tuple[int, int]]:
    """The ranges of hashes to be summed, first and end: as many as keep each within the bound of memory."""
    total = sum(len(np.load(path, mmap_mode="r")) for path in parts)
    count = max(-(-total // MOST_IN_RANGE), 1)
    edges = [number * (1 << 64) // count for number in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


def repeated(parts: Sequence[Path], bounds: tuple[int, int], most: int) -> np.ndarray:
    """The hashes within `bounds` of lines that stand in more than `most` documents: uint64, sorted.

    The results of all ranges, one after another, are sorted too.
    """
    found = []
    for path in parts:
        counts = np.load(path, mmap_mode="r")
        first, end = (_place(counts["key"], bound) for bound in bounds)
        found.append(np.array(counts[first:end]))
    summed = _summed(found)
    return summed["key"][summed["documents"] > most]


def without(text: str, keys: np.ndarray) -> str:
    """`text` without the lines whose hash is among the sorted `keys`."""
    lines = text.split("\n")
    places = [place for place, line in enumerate(lines) if _counts(line)]
    wanted = np.array([_key(lines[place]) for place in places], np.uint64)
    if not len(wanted) or not len(keys):
        return text
    nearest = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    dropped = {place for place, is_there in zip(places, keys[nearest] == wanted, strict=True) if is_there}
    return "\n".join(line for place, line in enumerate(lines) if place not in dropped) if dropped else text


def _counts(line: str) -> bool:
    return len(line) >= LEAST_BYTES or len(line.encode("utf-8", "replace")) >= LEAST_BYTES


def _key(line: str) -> int:
    """The hash of a line. Case, white space and numbers do not count: a footer has another date on each page."""
    plain = DIGITS.sub("0", " ".join(line.lower().split()))
    return int.from_bytes(hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _place(keys: np.ndarray, bound: int) -> int:
    return int(np.searchsorted(keys, np.uint64(bound))) if bound < 1 << 64 else len(keys)


def _summed(counts: Sequence[np.ndarray]) -> np.ndarray:
    """The sums of the counts of equal lines, sorted by their hash."""
    rows = np.concatenate([*counts, np.zeros(0, COUNT)])
    rows = rows[np.argsort(rows["key"], kind="stable")]
    if not len(rows):
        return rows
    starts = np.flatnonzero(np.concatenate([[True], rows["key"][1:] != rows["key"][:-1]]))
    summed = rows[starts]
    summed["documents"] = np.add.reduceat(rows["documents"], starts)
    return summed
