"""Exact and near duplicates of documents (MinHash, Broder 1997; Lee et al. 2022 for language models).

datatrove's MinHash writes signatures to sorted files, which a cluster merges, and its module needs the `tokenizers`
package. The signatures of one run fit in memory (1 KiB a document), so a few lines of numpy do the same.
D documents, S shingles, P permutations.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from tpullm.corpus import ngrams
from tpullm.corpus.text_hashes import GOLDEN, splitmix64

SHINGLE = 5  # words, or characters in scripts without spaces
PERMUTATIONS = 128
LEAST_RECALL = 0.99
MULTIPLIERS_P = splitmix64(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)  # odd


def exact_key(text: str) -> int:
    """A 64-bit hash that is the same for texts that differ in white space only."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:8], "little")


def signature(text: str) -> np.ndarray:
    """MinHash of the set of 5-grams of `text`: uint64 [P]. The share of equal entries estimates Jaccard similarity."""
    shingles_S = _shingles(text)
    # Multiply-shift hashing: odd multipliers, modulo 2^64. The high bits, which are well mixed, decide the minimum.
    return np.array([(shingles_S * multiplier).min() for multiplier in MULTIPLIERS_P], dtype=np.uint64)


def _shingles(text: str) -> np.ndarray:
    """Hashes of the distinct 5-grams of `text`: uint64 [S], S >= 1."""
    codes, _ = ngrams.units(text)
    return np.unique(ngrams.hashes(codes, min(SHINGLE, len(codes))))


def duplicates(
    keys: Sequence[int], signatures_DP: np.ndarray, similarity: float, order: Sequence[int]
) -> dict[int, str]:
    """The documents that repeat an earlier one in `order`: index → `exact duplicate` or `near duplicate`.

    Args:
        keys: the exact key of each document.
        signatures_DP: the signature of each document.
        similarity: least estimated Jaccard similarity of a near duplicate; at 1 only exact copies are found.
        order: the indices of the documents; of two copies the earlier one is kept.
    """
    found, seen = {}, set()
    for index in order:
        if keys[index] in seen:
            found[index] = "exact duplicate"
        seen.add(keys[index])
    if similarity < 1:
        rest = [index for index in order if index not in found]
        found |= {index: "near duplicate" for index in _near(signatures_DP, similarity, rest)}
    return found


def _near(signatures_DP: np.ndarray, similarity: float, order: list[int]) -> list[int]:
    """The documents that are similar to an earlier one in `order` that is kept."""
    buckets = _shared_buckets(signatures_DP, similarity, order)
    kept_in: dict[tuple[int, int], list[int]] = {}
    found = []
    for index in order:
        earlier = sorted({other for bucket in buckets.get(index, ()) for other in kept_in.get(bucket, ())})
        equal_shares = (signatures_DP[earlier] == signatures_DP[index]).mean(axis=1)
        if np.any(equal_shares >= similarity):
            found.append(index)
            continue
        for bucket in buckets.get(index, ()):
            kept_in.setdefault(bucket, []).append(index)
    return found


def _shared_buckets(signatures_DP: np.ndarray, similarity: float, order: list[int]) -> dict[int, list[tuple[int, int]]]:
    """Document → the buckets of locality-sensitive hashing (band, key) that it shares with another document."""
    rows = rows_per_band(similarity)
    indices = np.array(order, dtype=np.int64)
    shared: dict[int, list[tuple[int, int]]] = {}
    for band in range(PERMUTATIONS // rows):
        band_keys = np.zeros(len(indices), dtype=np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            band_keys = splitmix64(band_keys * GOLDEN + signatures_DP[indices, row])
        values, inverse, counts = np.unique(band_keys, return_inverse=True, return_counts=True)
        for position in np.flatnonzero(counts[inverse] > 1):
            shared.setdefault(int(indices[position]), []).append((band, int(values[inverse[position]])))
    return shared


def rows_per_band(similarity: float) -> int:
    """The most signature rows in one band that still find 99 % of the pairs at `similarity`: fewer false candidates."""
    fitting = [
        rows for rows in (1, 2, 4, 8, 16, 32) if 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows) >= LEAST_RECALL
    ]
    return max(fitting, default=1)
