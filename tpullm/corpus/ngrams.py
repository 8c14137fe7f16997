"""The n-grams of a text as arrays: of words, or of characters in scripts without spaces. B bytes, U units.

The hash of a word is the CRC-32 of its bytes. A CRC is linear: that of a word is the XOR of what each byte adds, which
depends on the byte and on how many follow it. So the words of a text take one look-up for each byte, and no strings.
"""

import functools
import zlib

import numpy as np

from tpullm.corpus import characters, language_detection
from tpullm.corpus.text_hashes import GOLDEN, splitmix64

LONGEST = 32  # bytes of a word in the table; longer words are hashed one by one


def units(text: str) -> np.ndarray:
    """The words or characters of `text` as hashes: uint64 [U], U >= 1."""
    if language_detection.is_spaceless(text):
        return language_detection.code_points("".join(text.split())).astype(np.uint64)
    codes = _words(text.lower())
    return codes if len(codes) else np.array([zlib.crc32(text.encode())], np.uint64)


def hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """The hash of each run of `n` consecutive codes: uint64 [U - n + 1]; empty if there are fewer codes."""
    return splitmix64(combined(splitmix64(codes), n))


def combined(mixed: np.ndarray, n: int) -> np.ndarray:
    """A number for each run of `n` consecutive values, which are well mixed: uint64 [U - n + 1]; may be empty."""
    count = max(len(mixed) - n + 1, 0)
    found = np.zeros(count, np.uint64)
    for offset in range(n):
        found *= GOLDEN
        found += mixed[offset : offset + count]
    return found


def _words(text: str) -> np.ndarray:
    """The CRC-32 of each word of `text`, a run of what `\\w` matches: uint64 [U]."""
    bytes_B = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    starts, ends = _edges(_is_word(text))
    if not len(starts):
        return np.zeros(0, np.uint64)
    first, lengths = starts[0], ends - starts
    # How many bytes of its word are left from each byte on. Behind the word there is none left.
    left_B = np.repeat(ends, characters.sizes(starts, len(bytes_B))) - np.arange(first, len(bytes_B))
    terms_B = _table().take((np.minimum(np.maximum(left_B, 0), LONGEST) << 8) + bytes_B[first:])
    found = np.bitwise_xor.reduceat(terms_B, starts - first) ^ _zeros().take(np.minimum(lengths, LONGEST))
    for place in np.flatnonzero(lengths > LONGEST).tolist():
        found[place] = zlib.crc32(bytes_B[starts[place] : ends[place]])
    return found.astype(np.uint64)


def _edges(is_word_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first byte of each word, and the one behind it: int64 [U] each."""
    padded = np.zeros(len(is_word_B) + 2, bool)
    padded[1:-1] = is_word_B
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges[::2], edges[1::2]


def _is_word(text: str) -> np.ndarray:
    """Which bytes of `text` in UTF-8 are of characters that `\\w` matches: bool [B]."""
    points = language_detection.code_points(text)
    is_word = characters.of_words().take(points, mode="clip")
    return is_word if text.isascii() else is_word.repeat(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))


@functools.cache
def _zeros() -> np.ndarray:
    """The CRC-32 of so many zero bytes: uint32 [LONGEST + 1]."""
    return np.array([zlib.crc32(bytes(count)) for count in range(LONGEST + 1)], np.uint32)


@functools.cache
def _table() -> np.ndarray:
    """What a byte adds to the CRC-32 of a word, by the number of bytes from it on: uint32, flat [LONGEST + 1, 256].

    Row 0 is 0: nothing is left of a word behind it.
    """
    zeros = _zeros().tolist()
    rows = [[0] * 256]
    for left in range(1, LONGEST + 1):
        rows.append([zlib.crc32(bytes([byte, *bytes(left - 1)])) ^ zeros[left] for byte in range(256)])
    return np.array(rows, np.uint32).ravel()
