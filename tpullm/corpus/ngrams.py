"""The n-grams of a text as arrays: of words, or of characters in scripts without spaces."""

import re
import zlib

import numpy as np

from tpullm.corpus import language_detection
from tpullm.corpus.text_hashes import GOLDEN, splitmix64

WORD = re.compile(r"\w+")


def units(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The words or characters of `text`: hashes and lengths in characters, uint64 [units] each, units >= 1."""
    if language_detection.is_spaceless(text):
        codes = language_detection.code_points("".join(text.split())).astype(np.uint64)
        return codes, np.ones_like(codes)
    words = WORD.findall(text.lower()) or [text]
    hashes = {word: zlib.crc32(word.encode()) for word in set(words)}
    return np.array([hashes[word] for word in words], np.uint64), np.array([len(word) for word in words], np.uint64)


def hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """The hash of each run of `n` consecutive codes: uint64 [units - n + 1]; empty if there are fewer codes."""
    count = max(len(codes) - n + 1, 0)
    combined = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        combined = combined * GOLDEN + splitmix64(codes[offset : offset + count])
    return splitmix64(combined)
