"""The words of a text, as filters count them, and their facts as arrays. W words.

Japanese words are not looked up: Sudachi reads 0.4 to 1.3 MB/s. A run of kana or of ideographs is cut after every
second character instead, which gives as many words as Sudachi finds (mode A): 0.6 % more in Soseki, 0.9 % fewer in
today's dialogues, of 1.5 and 1.7 characters in both, at 23 MB/s. Runs begin anew at each change of script, so a phrase
that repeats is cut as before. A test compares what the filters decide with one and the other.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CJK = "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\u3005-\u3007"
# `\w` has no combining marks, which stand inside the words of the scripts of India and of Arabic: they belong to words.
MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e30-\u0e4e"
# Marks at both ends of what stands between two spaces are words of their own; don't and example.org are one word.
SPACED = re.compile(rf"[\w{MARKS}](?:\S*[\w{MARKS}])?|\S")
SPACELESS = re.compile(
    r"[\u3041-\u309f]{1,2}|[\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f]+"
    r"|[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3005-\u3007\U00020000-\U000323af]{1,2}|[\u0e00-\u0e7f]{1,4}"
    rf"|[^\W{CJK}\u0e00-\u0e7f\U00020000-\U000323af]+|[^\w\s]"
)
UNSPACED_CHARACTER = re.compile(rf"[{CJK}\u0e00-\u0e7f]")
SAMPLE_CHARACTERS = 200
LEAST_SHARE = 0.3  # a text with so many ideographs, kana or Thai letters is mostly written without spaces

MOST_KNOWN = 300_000  # words whose facts are kept from one text to the next: about 50 MB
HAS_LETTER, HAS_TEXT = 1, 2
LENGTH_BITS = 24


@dataclass(frozen=True)
class Words:
    """The words of a text: marks are words too.

    Args:
        words: as they stand there, if they were kept.
        facts_W: of each word its number, its length and what is in it, in one int64.
    """

    words: Sequence[str]
    facts_W: np.ndarray

    def without_marks(self) -> "Words":
        """Those that are more than punctuation."""
        return Words((), self.facts_W[self.has_text_W])

    def __len__(self) -> int:
        return len(self.facts_W)

    @property
    def numbers_W(self) -> np.ndarray:
        """Equal words have equal numbers: uint64 [W]."""
        return (self.facts_W >> (LENGTH_BITS + 2)).astype(np.uint64)

    @property
    def lengths_W(self) -> np.ndarray:
        """Characters of each word: int64 [W]."""
        return (self.facts_W >> 2) & ((1 << LENGTH_BITS) - 1)

    @property
    def has_letter_W(self) -> np.ndarray:
        """Whether one of its characters is a letter: bool [W]."""
        return (self.facts_W & HAS_LETTER) != 0

    @property
    def has_text_W(self) -> np.ndarray:
        """Whether it is more than punctuation, by datatrove's set of it: bool [W]."""
        return (self.facts_W & HAS_TEXT) != 0


@functools.lru_cache(maxsize=2)  # several rules ask for the words of one text
def of(text: str) -> Words:
    """The words of `text`."""
    return known(split(text))


def known(words: Sequence[str]) -> Words:
    """Words that were found elsewhere, with their facts."""
    if len(_FACTS) > MOST_KNOWN:
        _FACTS.clear()
    return Words(words, np.fromiter(map(_FACTS.__getitem__, words), np.int64, len(words)))


def split(text: str) -> list[str]:
    """The words of `text` in their order."""
    return (SPACELESS if is_spaceless(text) else SPACED).findall(text)


def is_spaceless(text: str) -> bool:
    """Whether a text is mostly written without spaces, by its beginning, its middle and its end."""
    if text.isascii():
        return False
    places = {0, len(text) // 2, max(len(text) - SAMPLE_CHARACTERS, 0)}
    sample = "".join(text[place : place + SAMPLE_CHARACTERS] for place in sorted(places))
    return len(UNSPACED_CHARACTER.findall(sample)) > LEAST_SHARE * len(sample)


class _Facts(dict):
    """A word → its facts. Its number is new with each word, so it means nothing but equality."""

    def __init__(self):
        super().__init__()
        self._punctuation: frozenset[str] = frozenset()

    def __missing__(self, word: str) -> int:
        if not self._punctuation:
            from datatrove.utils.text import PUNCTUATION_SET

            self._punctuation = frozenset(PUNCTUATION_SET)
        flags = HAS_LETTER * any(map(str.isalpha, word)) + HAS_TEXT * (not self._punctuation.issuperset(word))
        length = min(len(word), (1 << LENGTH_BITS) - 1)
        self[word] = facts = len(self) << (LENGTH_BITS + 2) | length << 2 | flags
        return facts


_FACTS = _Facts()
