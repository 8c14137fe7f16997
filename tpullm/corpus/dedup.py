"""What tells copies of a document: one key for exact copies, and keys of bands for near copies (MinHash).

Broder 1997; Lee et al. 2022 and FineWeb (Penedo et al. 2024, 14 bands of 8) for language models. datatrove's MinHash
computes the same kind of bands, document by document; here `reduce.py` needs them as arrays.
D documents, S shingles, P permutations, G groups (bands).
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from tpullm.corpus import ngrams
from tpullm.corpus.text_hashes import GOLDEN, splitmix64

SHINGLE = 5  # words, or characters in scripts without spaces
BANDS, ROWS = 14, 8
PERMUTATIONS = BANDS * ROWS
MULTIPLIERS_P = splitmix64(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)  # odd
_LARGEST = np.uint64(2**64 - 1)
_SHINGLES_AT_ONCE = 1024  # their products take 0.9 MiB, which a core's second cache holds


def exact_key(text: str) -> int:
    """A 64-bit hash that is the same for texts that differ in white space only."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:8], "little")


def signature(text: str) -> np.ndarray:
    """MinHash of the set of 5-grams of `text`: uint64 [P]. The share of equal entries estimates Jaccard similarity."""
    shingles_S = _shingles(text)
    smallest_P = np.full(PERMUTATIONS, _LARGEST)
    for start in range(0, len(shingles_S), _SHINGLES_AT_ONCE):
        some_S = shingles_S[start : start + _SHINGLES_AT_ONCE]
        # Multiply-shift hashing: odd multipliers, modulo 2^64. The high bits, which are well mixed, decide the minimum.
        products_PS = _room()[: PERMUTATIONS * len(some_S)].reshape(PERMUTATIONS, len(some_S))
        np.multiply(MULTIPLIERS_P[:, None], some_S, out=products_PS)
        np.minimum(smallest_P, products_PS.min(axis=1), out=smallest_P)
    return smallest_P


@functools.cache
def _room() -> np.ndarray:
    """Memory for products, which is used again: 460 -> 110 us for 1,300 shingles, since new memory is mapped anew."""
    return np.empty(PERMUTATIONS * _SHINGLES_AT_ONCE, np.uint64)


def bands(signatures: Sequence[np.ndarray]) -> np.ndarray:
    """The keys of the bands of documents: uint64 [D, G]. Near copies have a key in common.

    Two documents of Jaccard similarity s have one with probability 1 - (1 - s^8)^14: 0.92 at 0.8, 0.56 at 0.7, 0.05 at
    0.5. No key of one band is a key of another, but for chance.
    """
    rows_DGR = np.array(signatures, np.uint64).reshape(-1, BANDS, ROWS)
    keys_DG = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), rows_DGR.shape[:2])
    for row in range(ROWS):
        keys_DG = splitmix64(keys_DG * GOLDEN + rows_DGR[:, :, row])
    return keys_DG


def _shingles(text: str) -> np.ndarray:
    """Hashes of the 5-grams of `text`: uint64 [S], S >= 1. What repeats is there again, which changes no minimum."""
    codes = ngrams.units(text)
    return ngrams.hashes(codes, min(SHINGLE, len(codes)))
