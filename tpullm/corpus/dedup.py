"""What tells copies of a document and of its lines: hashes of texts, of runs of words, and of lines.

A document has one key for exact copies, and keys of bands for near copies (MinHash: Broder 1997; Lee et al. 2022 and
FineWeb, Penedo et al. 2024, 14 bands of 8, for language models). datatrove's MinHash computes the same kind of bands,
document by document; here `reduce.py` needs them as arrays.
D documents, S shingles, P permutations, G groups (bands), B bytes, U units.

A unit of a text is a word, or a character in scripts without spaces. The hash of a word is the CRC-32 of its bytes. A
CRC is linear: that of a word is the XOR of what each byte adds, which depends on the byte and on how many follow it. So
the words of a text take one look-up for each byte, and no strings.
"""

import functools
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from tpullm.corpus import characters, language_detection
from tpullm.recipe.schema import CorpusConfig, Source

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd: the step of SplitMix64
LONGEST = 32  # bytes of a word in the table; longer words are hashed one by one
SHINGLE = 5  # words, or characters in scripts without spaces
BANDS, ROWS = 14, 8
PERMUTATIONS = BANDS * ROWS
_SHINGLES_AT_ONCE = 1024  # their products take 0.9 MiB, which a core's second cache holds
LINE = np.dtype([("key", "<u8"), ("characters", "<u4")])
# Of letters, in UTF-8: seven ideographs or four English words. 「はい」 and "He said:" may be repeated.
LEAST_BYTES = 20
_NO_LETTERS = bytes(byte for byte in range(128) if chr(byte) != "\n" and not chr(byte).isalpha())


def text_hash(text: str) -> str:
    """SHA-256 of the UTF-8 text, hexadecimal: it names a document and decides whether it is held out."""
    return hashlib.sha256(text.encode()).hexdigest()


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014): each bit of the result depends on each bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


MULTIPLIERS_P = splitmix64(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)  # odd


def units(text: str) -> np.ndarray:
    """The words or characters of `text` as hashes: uint64 [U], U >= 1."""
    if language_detection.is_spaceless(text):
        return characters.code_points("".join(text.split())).astype(np.uint64)
    codes = _word_checksums(text.lower())
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


def _word_checksums(text: str) -> np.ndarray:
    """The CRC-32 of each word of `text`, a run of what `\\w` matches: uint64 [U]."""
    bytes_B = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    points = characters.code_points(text)
    is_word = characters.of_words().take(points, mode="clip")
    if not text.isascii():  # of characters -> of their bytes in UTF-8
        is_word = is_word.repeat(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]  # the first byte of each word, and the one behind it
    if not len(starts):
        return np.zeros(0, np.uint64)
    first, lengths = starts[0], ends - starts
    # How many bytes of its word are left from each byte on. Behind the word there is none left.
    left_B = np.repeat(ends, np.diff(starts, append=len(bytes_B))) - np.arange(first, len(bytes_B))
    terms_B = _byte_checksums().take((np.minimum(np.maximum(left_B, 0), LONGEST) << 8) + bytes_B[first:])
    found = np.bitwise_xor.reduceat(terms_B, starts - first) ^ _zero_byte_checksums().take(np.minimum(lengths, LONGEST))
    for place in np.flatnonzero(lengths > LONGEST).tolist():
        found[place] = zlib.crc32(bytes_B[starts[place] : ends[place]])
    return found.astype(np.uint64)


@functools.cache
def _zero_byte_checksums() -> np.ndarray:
    """The CRC-32 of 0 to LONGEST zero bytes: uint32 [LONGEST + 1]."""
    return np.array([zlib.crc32(bytes(count)) for count in range(LONGEST + 1)], np.uint32)


@functools.cache
def _byte_checksums() -> np.ndarray:
    """What a byte adds to the CRC-32 of a word, by the number of bytes from it on: uint32, flat [LONGEST + 1, 256].

    Row 0 is 0: nothing is left of a word behind it.
    """
    zeros = _zero_byte_checksums().tolist()
    rows = [[0] * 256]
    for left in range(1, LONGEST + 1):
        rows.append([zlib.crc32(bytes([byte, *bytes(left - 1)])) ^ zeros[left] for byte in range(256)])
    return np.array(rows, np.uint32).ravel()


def exact_key(text: str) -> int:
    """A 64-bit hash that is the same for texts that differ in white space only."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:8], "little")


def signature(text: str) -> np.ndarray:
    """MinHash of the set of 5-grams of `text`: uint64 [P]. The share of equal entries estimates Jaccard similarity."""
    codes = units(text)
    shingles_S = hashes(codes, min(SHINGLE, len(codes)))  # what repeats is there again, which changes no minimum
    smallest_P = np.full(PERMUTATIONS, 2**64 - 1, np.uint64)
    for start in range(0, len(shingles_S), _SHINGLES_AT_ONCE):
        some_S = shingles_S[start : start + _SHINGLES_AT_ONCE]
        # Multiply-shift hashing: odd multipliers, modulo 2^64. The high bits, which are well mixed, decide the minimum.
        products_PS = _memory_for_products()[: PERMUTATIONS * len(some_S)].reshape(PERMUTATIONS, len(some_S))
        np.multiply(MULTIPLIERS_P[:, None], some_S, out=products_PS)
        np.minimum(smallest_P, products_PS.min(axis=1), out=smallest_P)
    return smallest_P


@functools.cache
def _memory_for_products() -> np.ndarray:
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


def keeps_lines(source: Source, config: CorpusConfig) -> bool:
    """Whether the parts of a source keep the lines of their documents.

    With `filter: false` nothing is judged, and with `deduplicate: false` documents are there more than once on purpose.
    """
    return config.repeated_lines > 0 and source.filter and source.deduplicate


def lines_of(text: str) -> np.ndarray:
    """The different lines of a text, sorted by their hash, and how many characters each has in all: [lines] of `LINE`.

    Of ASCII, letters count and their case does not: a footer has another date on each page, and rows of numbers are no
    footers. Lines of fewer letters are left out.
    """
    digests, characters = [], []
    # What counts of each line: all at once, so that it takes little time.
    letters_of_lines = text.lower().encode().translate(None, _NO_LETTERS).split(b"\n")
    for line, letters in zip(text.split("\n"), letters_of_lines, strict=True):
        if len(letters) >= LEAST_BYTES:
            digests.append(hashlib.blake2b(letters, digest_size=8).digest())
            characters.append(len(line))
    keys, which = np.unique(np.frombuffer(b"".join(digests), "<u8"), return_inverse=True)
    found = np.empty(len(keys), LINE)
    found["key"], found["characters"] = keys, np.bincount(which, characters, len(keys))
    return found
