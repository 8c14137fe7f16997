"""Texts full of words that a list names: adult words in Japanese and English, phrases of Japanese advertising.

The lists are those of HojiChar (Apache-2.0), read as files. Its own filters drop a text for one word, so アスパラガス
falls by アス. Here a text falls if it has many of them, and a word of katakana or Latin letters counts only as a whole.
"""

import functools
import importlib.util
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm.corpus.filters import words
from tpullm.corpus.language_detection import code_points

LEAST_WORDS, LEAST_SHARE = 3, 0.01  # different words, and the share of their characters, from which a text is adult
# HojiChar's DiscardAds allows 14 phrases in a page; longer texts may have as many for each 5,000 characters.
MOST_PHRASES, PAGE_CHARACTERS = 14, 5000
TABLE_BITS = 16
TABLE_SHIFT = np.uint64(64 - TABLE_BITS)
MULTIPLIER = np.uint32(0x9E37)
KATAKANA = re.compile(r"[ァ-ヺー]+")
LATIN = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True)
class _List:
    """A list of words.

    Args:
        words: in lower case.
        lengths: the first two characters of a word → the lengths of the words that begin so.
        begins: whether a word may begin with two characters, by their hash: bool [2^16].
    """

    words: frozenset[str]
    lengths: dict[str, tuple[int, ...]]
    begins: np.ndarray


def is_adult(text: str) -> bool:
    """Whether a text is full of adult words: three different ones, and one character of a hundred in them."""
    found = _english(text) if text.isascii() else counts(text, "adult_keywords_ja.txt") + _english(text)
    characters = sum(len(word) * count for word, count in found.items())
    return len(found) >= LEAST_WORDS and characters > LEAST_SHARE * len(text)


def is_advertising(text: str) -> bool:
    """Whether a text is full of the phrases of advertising."""
    phrases = counts(text, "advertisement_keywords_ja.txt").total()
    return phrases > MOST_PHRASES * max(len(text) / PAGE_CHARACTERS, 1)


def _english(text: str) -> Counter[str]:
    """How often each English adult word is in a text, if there are enough of them."""
    (forms, may_be_form), found = _forms("adult_keywords_en.txt"), words.of(text)
    places = np.flatnonzero(may_be_form[found.hashes_W >> TABLE_SHIFT]).tolist()
    counted = Counter(word.lower() for place in places if (word := found[place]) in forms)
    return counted if len(counted) >= LEAST_WORDS else Counter()


@functools.lru_cache(maxsize=1)
def _forms(name: str) -> tuple[frozenset[str], np.ndarray]:
    """The words of a list as they stand in a sentence, at its beginning, and in capitals; and the bits of their hashes.

    The bits say whether a word may be one of them, by the highest bits of its hash: bool [2^16].
    """
    forms = frozenset(form for word in _load(name).words for form in (word, word.capitalize(), word.upper()))
    may_be_form = np.zeros(1 << TABLE_BITS, bool)
    may_be_form[np.array([words.hash_of(form) for form in forms], np.uint64) >> TABLE_SHIFT] = True
    return forms, may_be_form


def counts(text: str, name: str) -> Counter[str]:
    """How often each word of a list is in `text`, where words may lie in each other."""
    listed, lowered = _load(name), text.lower()
    found: Counter[str] = Counter()
    for place in _places(lowered, listed.begins):
        for length in listed.lengths.get(lowered[place : place + 2], ()):
            word = lowered[place : place + length]
            if word in listed.words and _is_whole(lowered, place, place + length):
                found[word] += 1
    return found


def _places(text: str, begins: np.ndarray) -> list[int]:
    """Where a word of the list may begin."""
    points = code_points(text)
    return np.flatnonzero(begins[_hash(points[:-1], points[1:])]).tolist()


def _hash(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * MULTIPLIER + second) & np.uint32((1 << TABLE_BITS) - 1)


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a word of katakana or Latin letters is not a part of a longer one; other words always are whole."""
    around = text[max(start - 1, 0) : start], text[end : end + 1]
    for script in (KATAKANA, LATIN):
        if script.fullmatch(text, start, end):
            return not any(script.match(character) for character in around)
    return True


@functools.lru_cache(maxsize=8)
def _load(name: str) -> _List:
    lines = (_folder() / name).read_text(encoding="utf-8").lower().splitlines()
    listed = frozenset(word for line in lines if len(word := line.strip()) >= 2 and not word.startswith("<test_"))
    lengths: dict[str, set[int]] = {}
    begins = np.zeros(1 << TABLE_BITS, bool)
    for word in listed:
        lengths.setdefault(word[:2], set()).add(len(word))
        first, second = code_points(word)[:2]
        begins[_hash(first, second)] = True
    return _List(listed, {begin: tuple(sorted(found)) for begin, found in lengths.items()}, begins)


def _folder() -> Path:
    """Where HojiChar keeps its lists. Nothing of it is imported: its modules would bring tqdm and more."""
    found = importlib.util.find_spec("hojichar")
    assert found is not None and found.submodule_search_locations, "hojichar is a dependency of this package"
    return Path(found.submodule_search_locations[0]) / "dict"
