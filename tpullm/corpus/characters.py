"""Facts of characters as tables, so that numpy finds those of a whole text at once.

A table ends where Unicode has no more letters, spaces and marks: look up code points with `mode="clip"`, and those
beyond have the last entry.

A text without what people change when they copy it: width, case, white space, punctuation. C characters.

A folded text is the letters and digits of Unicode's NFKC of the text, in lower case (`str.casefold`). Almost every
character is folded alone, by a table. A text with one that is not (a combining mark, `㍻`) takes the slow way.

Cuts a text that is too long at the end of a line or of a sentence.
"""

import functools
import re
import unicodedata
from collections.abc import Callable

import numpy as np

from tpullm.corpus.language_detection import code_points

# Places where a text may be cut, best first: a line's end, a sentence's end.
BOUNDARIES = (re.compile(r"\n"), re.compile(r"[。．！？]|[.!?] "))


def cut(text: str, length: int) -> list[str]:
    """Consecutive pieces of `text`, of at most `length` characters each; joined they are `text`.

    A piece ends after a line if there is a line end in it, else after a sentence, else anywhere.
    """
    pieces, start = [], 0
    while len(text) - start > length:
        end = _boundary(text, start, start + length)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _boundary(text: str, start: int, limit: int) -> int:
    """The best place to cut in the second half of `text[start:limit]`, else in its first half, else `limit`."""
    middle = (start + limit) // 2
    for low, high in ((middle, limit), (start, middle)):
        for boundary in BOUNDARIES:
            ends = [match.end() for match in boundary.finditer(text, low, high)]
            if ends:
                return ends[-1]
    return limit


END = 0x40000  # planes 4 to 13 are empty; behind them are tags, selectors of variants and private characters


def that(test: Callable[[str], bool]) -> np.ndarray:
    """Which characters pass a test: bool [END]."""
    return np.fromiter(map(test, map(chr, range(END))), bool, END)


def within(*blocks: tuple[int, int]) -> np.ndarray:
    """Which characters are in one of some blocks, each a first and a last code point: bool [END]."""
    found = np.zeros(END, bool)
    for first, last in blocks:
        found[first : last + 1] = True
    return found


def sizes(starts: np.ndarray, end: int) -> np.ndarray:
    """How far it is from each of some places in a text to the next one, and from the last one to `end`."""
    found = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=found[:-1])
    found[-1:] = end - starts[-1:]
    return found


@functools.cache
def of_words() -> np.ndarray:
    r"""Which characters `\w` matches, by the words of Python's documentation: bool [END]."""
    found = that(str.isalnum)
    found[ord("_")] = True
    return found


_SLOW = np.uint32(0xFFFFFFFF)  # of a character that is not folded alone, or not to one
_ASCII = bytes(range(128)).lower() + bytes(128)
_ASCII_LEFT_OUT = bytes(number for number in range(128) if not chr(number).isalnum())


def folded(text: str) -> np.ndarray:
    """The code points of a folded text: uint32 [C]. At least 90 MB/s on one busy core, Japanese or ASCII."""
    if text.isascii():
        return np.frombuffer(text.encode().translate(_ASCII, _ASCII_LEFT_OUT), np.uint8).astype(np.uint32)
    points = _table().take(code_points(text), mode="clip")
    if len(points) and points.max() == _SLOW:
        return code_points("".join(filter(str.isalnum, normal(text))))
    return points[points > 0]


def normal(text: str) -> str:
    """The text in NFKC and in lower case, with its white space and punctuation."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _table() -> np.ndarray:
    """What each character is folded to, 0 for nothing: uint32 [END]."""
    composing = _composing()
    return np.fromiter((_alone(chr(point), composing) for point in range(END)), np.uint32, END)


def _alone(character: str, composing: frozenset[str]) -> int:
    if not character.isalnum() and character.isascii():
        return 0
    whole = normal(character)
    left = "".join(filter(str.isalnum, whole))
    if len(left) > 1 or not composing.isdisjoint(unicodedata.normalize("NFKC", character)):
        return int(_SLOW)
    return ord(left) if left else 0


@functools.cache
def _composing() -> frozenset[str]:
    """The characters that NFKC may join with one before them, or put in another order (Unicode, UAX 15)."""
    found = {chr(point) for point in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # vowels and finals of Hangul
    for point in range(END):
        if unicodedata.combining(chr(point)):
            found.add(chr(point))
        kind, *parts = unicodedata.decomposition(chr(point)).split() or [""]
        if parts and not kind.startswith("<"):
            found.add(chr(int(parts[0], 16)))
    return frozenset(found)
