"""What tells copies of a document: one key for exact copies, and keys of bands for near copies (MinHash).

Broder 1997; Lee et al. 2022 and FineWeb (Penedo et al. 2024, 14 bands of 8) for language models. datatrove's MinHash
computes the same kind of bands, document by document; here `reduce.py` needs them as arrays.
D documents, S shingles, P permutations, G groups (bands).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from tpullm.corpus import ngrams
from tpullm.corpus.text_hashes import GOLDEN, splitmix64

SHINGLE = 5  # words, or characters in scripts without spaces
BANDS, ROWS = 14, 8
PERMUTATIONS = BANDS * ROWS
MULTIPLIERS_P = splitmix64(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)  # odd
_PRODUCTS_AT_ONCE = 1 << 16  # 512 KiB, which a core's second cache holds


def exact_key(text: str) -> int:
    """A 64-bit hash that is the same for texts that differ in white space only."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:8], "little")


def signature(text: str) -> np.ndarray:
    """MinHash of the set of 5-grams of `text`: uint64 [P]. The share of equal entries estimates Jaccard similarity."""
    shingles_S = _shingles(text)
    smallest_P = np.full(PERMUTATIONS, np.iinfo(np.uint64).max, np.uint64)
    at_once = _PRODUCTS_AT_ONCE // PERMUTATIONS
    for start in range(0, len(shingles_S), at_once):
        # Multiply-shift hashing: odd multipliers, modulo 2^64. The high bits, which are well mixed, decide the minimum.
        products_PS = MULTIPLIERS_P[:, None] * shingles_S[None, start : start + at_once]
        np.minimum(smallest_P, products_PS.min(axis=1), out=smallest_P)
    return smallest_P


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
    """Hashes of the distinct 5-grams of `text`: uint64 [S], S >= 1."""
    codes, _ = ngrams.units(text)
    return np.unique(ngrams.hashes(codes, min(SHINGLE, len(codes))))
