"""What tells copies of a document and of its lines: hashes of texts, of runs of words, and of lines.

A document has one key for exact copies, and keys of bands for near copies (MinHash: Broder 1997; Lee et al. 2022 for
language models). datatrove's MinHash computes the same kind of bands, document by document; here `reduce.py` needs them
as arrays. A band only says which documents may be near copies: `near_copies.py` compares their sketches. So there are
more bands than FineWeb's 14 of 8 (Penedo et al. 2024), of as many hashes: 75 % of pairs of 0.7 share one, not 56 %.
D documents, S shingles, P permutations, G groups (bands), B bytes, U units.

A unit of a text is a word, or a character of a script without spaces, with the signs before it. The hash of a word is
the CRC-32 of its bytes. A CRC is linear: that of a word is the XOR of what each byte adds, which depends on the byte
and on how many follow it. So the words of a text take one look-up for each byte, and no strings.
"""

import functools
import hashlib
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from tpullm.corpus import characters, language_detection

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd: the step of SplitMix64
LONGEST = 32  # bytes of a word in the table; longer words are hashed one by one
SHINGLE = 5  # words, or characters in scripts without spaces
BANDS, ROWS = 16, 7
PERMUTATIONS = BANDS * ROWS
_SHINGLES_AT_ONCE = 1024  # their products take 0.9 MiB, which a core's second cache holds
LINE = np.dtype([("key", "<u8"), ("characters", "<u4")])
# Of letters, in UTF-8: seven ideographs or four English words. 「はい」 and "He said:" may be repeated.
LEAST_BYTES = 20
SKETCH = 1024  # half of the pages of the web have fewer different 5-grams
POINTS = tuple(map(ord, ".．․﹒"))
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
    """The words of `text`, and its characters in scripts without spaces, as hashes: uint64 [U], U >= 1.

    A page of Japanese with code has both. What signs stand before a unit (`characters.SIGNS`) is part of it, so `3 - 4`
    and `3 + 4` differ. As units of their own they made two quotes alike by `-- ` before the name.
    """
    text = text.lower()
    points = characters.code_points(text)
    is_unit = np.zeros(0, bool) if text.isascii() else _is_spaceless().take(points, mode="clip")
    if not is_unit.any():
        places, words = _word_checksums(text)
        codes = words.astype(np.uint64)
    else:
        others = np.where(is_unit, np.uint32(ord(" ")), points).tobytes().decode("utf-32-le", "surrogatepass")
        starts, words = _word_checksums(others)
        codes = points.astype(np.uint64)
        codes[starts], is_unit[starts] = words, True
        places = np.flatnonzero(is_unit)
        codes = codes[places]
    signs = _signs().take(points, mode="clip")
    before = np.flatnonzero(signs)
    if len(before) and len(places):
        before = before[before < places[-1]]
        np.add.at(codes, np.searchsorted(places, before), splitmix64(signs[before].astype(np.uint64)))
    return codes if len(codes) else np.array([zlib.crc32(text.encode())], np.uint64)


@functools.cache
def _is_spaceless() -> np.ndarray:
    """Which characters of words are of scripts without spaces between words: bool [END]."""
    return characters.characters_in_blocks(*language_detection.SPACELESS) & characters.of_words()


@functools.cache
def _signs() -> np.ndarray:
    """The sign that a character is, 0 for others: uint8 [END]."""
    found = np.zeros(characters.END, np.uint8)
    for character, sign in characters.SIGNS.items():
        found[ord(character)] = ord(sign)
    return found


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


def _word_checksums(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each word of `text` begins, a run of what `\\w` matches, and its CRC-32: [words] each."""
    bytes_B = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    points = characters.code_points(text)
    is_word = characters.of_words().take(points, mode="clip")
    places = np.flatnonzero(np.diff(is_word, prepend=False, append=False))[::2]
    if not text.isascii():  # of characters -> of their bytes in UTF-8
        is_word = is_word.repeat(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]  # the first byte of each word, and the one behind it
    if not len(starts):
        return places, np.zeros(0, np.uint32)
    first, lengths = starts[0], ends - starts
    # How many bytes of its word are left from each byte on. Behind the word there is none left.
    left_B = np.repeat(ends, np.diff(starts, append=len(bytes_B))) - np.arange(first, len(bytes_B))
    terms_B = _byte_checksums().take((np.minimum(np.maximum(left_B, 0), LONGEST) << 8) + bytes_B[first:])
    found = np.bitwise_xor.reduceat(terms_B, starts - first) ^ _zero_byte_checksums().take(np.minimum(lengths, LONGEST))
    for place in np.flatnonzero(lengths > LONGEST).tolist():
        found[place] = zlib.crc32(bytes_B[starts[place] : ends[place]])
    return places, found


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
    """A 64-bit hash that is the same for texts that differ in width, case, white space and punctuation only.

    Of marks the signs of arithmetic count (`characters.SIGNS`), and what stands between two digits: a point, or that
    something does. A text without letters, digits and signs is hashed as it is, but for its white space.
    """
    points, found = characters.folded_with_signs(text)
    places = np.flatnonzero(found)
    folded = found[places].astype(np.uint32)
    digits = np.flatnonzero(folded - np.uint32(ord("0")) < 10)  # of what is less the difference is very large
    # Those that are followed by a digit, with something that is left out in between.
    apart = digits[:-1][(np.diff(digits) == 1) & (np.diff(places[digits]) > 1)] if len(digits) > 1 else digits[:0]
    if len(apart):
        is_point = (places[apart + 1] - places[apart] == 2) & np.isin(points[places[apart] + 1], POINTS)
        folded = np.insert(folded, apart + 1, np.where(is_point, np.uint32(ord(".")), np.uint32(ord(" "))))
    told = folded.tobytes() if len(folded) else " ".join(text.split()).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "little")


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
    """The keys of the bands of documents: uint64 [D, G]. Documents that may be near copies have a key in common.

    Two documents of Jaccard similarity s have one with probability 1 - (1 - s^7)^16: 0.98 at 0.8, 0.75 at 0.7, 0.12 at
    0.5. No key of one band is a key of another, but for chance.
    """
    rows_DGR = np.array(signatures, np.uint64).reshape(-1, BANDS, ROWS)
    keys_DG = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), rows_DGR.shape[:2])
    for row in range(ROWS):
        keys_DG = splitmix64(keys_DG * GOLDEN + rows_DGR[:, :, row])
    return keys_DG


def _letters_of_lines(text: str) -> list[bytes]:
    """What counts of each line of a text: its letters, and all that is not ASCII. Case does not count.

    A footer has another date on each page, and rows of numbers are no footers.
    """
    return text.lower().encode().translate(None, _NO_LETTERS).split(b"\n")  # all at once: it takes little time


def _line_keys(lines: Iterable[bytes]) -> np.ndarray:
    """The hash of each line, by what counts of it: uint64 [lines]."""
    return np.frombuffer(b"".join(hashlib.blake2b(line, digest_size=8).digest() for line in lines), "<u8")


def lines_of(text: str) -> np.ndarray:
    """The different lines of a text, sorted by their hash, and how many characters each has in all: [lines] of `LINE`.

    A line of fewer than `LEAST_BYTES` of letters has no characters: a document may be mostly such lines. Near copies
    are compared without them too, if they stand in many documents.
    """
    characters: dict[bytes, int] = {}
    for line, letters in zip(text.split("\n"), _letters_of_lines(text), strict=True):
        characters[letters] = characters.get(letters, 0) + len(line) * (len(letters) >= LEAST_BYTES)
    characters.pop(b"", None)
    found = np.empty(len(characters), LINE)
    found["key"], found["characters"] = _line_keys(characters), list(characters.values())
    return found[np.argsort(found["key"])]


def without_lines(text: str, keys: np.ndarray) -> str:
    """The text without the lines that have one of some sorted keys; all of it if nothing else is in it."""
    is_left = ~are_in(_line_keys(_letters_of_lines(text)), keys)
    if is_left.all():
        return text
    left = "\n".join(line for line, stays in zip(text.split("\n"), is_left.tolist(), strict=True) if stays)
    return left if left.strip() else text


def are_in(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which keys are among the sorted, known ones: bool [keys]."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def sketch(text: str) -> np.ndarray:
    """The lowest `SKETCH` of the hashes of the different shingles of a text, sorted: uint32 [at most SKETCH]."""
    codes = units(text)
    shingles_S = hashes(codes, min(SHINGLE, len(codes))) >> np.uint64(32)
    return np.unique(shingles_S.astype(np.uint32))[:SKETCH].copy()  # a view would keep all shingles of a long text


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two texts, by their sketches.

    It is exact if both have at most `SKETCH` shingles, and else an estimate from the lowest ones of both (Broder 1997),
    whose standard deviation is at most 0.016.
    """
    last = min((int(own[-1]) for own in (one, other) if len(own) == SKETCH), default=2**32)
    first, second = (own[: np.searchsorted(own, last, side="right")] for own in (one, other))
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
