"""The words of a text, as filters count them, in arrays: no string is made for a word. W words, C characters.

Japanese words are not looked up: Sudachi reads 0.4 to 1.3 MB/s. A run of kana or of ideographs is cut after every
second character instead, which gives as many words as Sudachi finds (mode A): 0.6 % more in Soseki, 0.9 % fewer in
today's dialogues, of 1.5 and 1.7 characters in both. Runs begin anew at each change of script, so a phrase that repeats
is cut as before. With the words of Sudachi, the rules of Gopher decide alike on 359 of 360 pages and on 278 of 300
dialogues.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from tpullm.corpus import characters
from tpullm.corpus.characters import code_points
from tpullm.corpus.dedup import splitmix64

# Blocks of Unicode, first and last code point.
HIRAGANA, THAI = ((0x3041, 0x309F),), ((0x0E00, 0x0E7F),)
KATAKANA = ((0x30A0, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
COMMON_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x3005, 0x3007))
# `\w` has no combining marks, which stand inside the words of the scripts of India and of Arabic: they belong to words.
MARKS = ((0x0300, 0x036F), (0x0591, 0x05BD), (0x064B, 0x065F), (0x0900, 0x0963), (0x0966, 0x0DFF), (0x0E30, 0x0E4E))
# What a character is: the lowest bits say how a text without spaces is cut, the others are flags.
SPACE, MARK, OTHER = 0, 1, 2
SCRIPTS = ((3, HIRAGANA), (4, KATAKANA), (5, (*COMMON_HAN, (0x20000, 0x323AF))), (6, THAI))
SCRIPT, IN_WORD, HAS_LETTER, HAS_TEXT = 7, 8, 16, 32
# The characters of a word, less one, are bits of these: 1 for a mark, 2 for hiragana and ideographs, 4 for Thai.
LONGEST = np.array([0, 0, -1, 1, -1, 1, 3, 0])
SPACELESS = ("ja", "th", "wuu", "yue", "zh")  # languages without spaces between words


@functools.cache
def word_lists(name: str) -> dict[str, list[str]]:
    """Lists of words of `words.yaml`, by their names."""
    return yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))[name]


@dataclass(frozen=True)
class Words:
    """The words of a text: marks are words too.

    Args:
        text: the text.
        kinds_C: what each of its characters is: uint8 [C].
        starts_W: the first character of each word: int64 [W]. White space may follow its last one.
    """

    text: str
    kinds_C: np.ndarray
    starts_W: np.ndarray

    def __len__(self) -> int:
        return len(self.starts_W)

    def __getitem__(self, number: int) -> str:
        return self.text[self.starts_W[number] : self.starts_W[number] + self.lengths_W[number]]

    @functools.cached_property
    def lengths_W(self) -> np.ndarray:
        """Characters of each word: int64 [W]."""
        before_C = np.concatenate([[0], np.cumsum(self._is_text_C)])
        return np.diff(before_C[self.starts_W], append=before_C[-1])

    @functools.cached_property
    def hashes_W(self) -> np.ndarray:
        """Equal words have equal hashes, and others have others: uint64 [W].

        The hash is the sum of the code points, each times a number for its place in the word.
        """
        if not len(self):
            return np.zeros(0, np.uint64)
        first, sizes_W = self.starts_W[0], np.diff(self.starts_W, append=len(self.text))
        places_C = np.arange(first, len(self.text)) - np.repeat(self.starts_W, sizes_W)
        points_C = (code_points(self.text) * self._is_text_C)[first:]
        multipliers = _character_multipliers(max(int(sizes_W.max()), 64).bit_length())
        return np.add.reduceat(multipliers.take(places_C) * points_C, self.starts_W - first)

    @functools.cached_property
    def has_letter_W(self) -> np.ndarray:
        """Whether one of its characters is a letter: bool [W]."""
        return (self._kinds_W & HAS_LETTER) != 0

    @functools.cached_property
    def has_text_W(self) -> np.ndarray:
        """Whether it is more than punctuation, by datatrove's set of it: bool [W]."""
        return (self._kinds_W & HAS_TEXT) != 0

    @functools.cached_property
    def _kinds_W(self) -> np.ndarray:
        return np.bitwise_or.reduceat(self.kinds_C, self.starts_W) if len(self) else np.zeros(0, np.uint8)

    @functools.cached_property
    def _is_text_C(self) -> np.ndarray:
        return (self.kinds_C & SCRIPT) != SPACE


@functools.lru_cache(maxsize=2)  # several rules ask for the words of one text
def words_of(text: str, language: str) -> Words:
    """The words of `text`, cut as its language (ISO 639) is written.

    The share of ideographs and kana says less: manuals are full of names, options and white space. Of 893 Japanese
    pages, 631 fell as "words too long" by it.
    """
    kinds_C = _character_kinds().take(code_points(text), mode="clip")
    begin = _begin_unspaced if language in SPACELESS else _begin_spaced
    return Words(text, kinds_C, np.flatnonzero(begin(kinds_C)))


@functools.lru_cache(maxsize=1000)
def hash_of_word(word: str) -> np.uint64:
    """The hash that `word` has as a word of a text."""
    multipliers = _character_multipliers(max(len(word), 64).bit_length())[: len(word)]
    return (multipliers * code_points(word)).sum(dtype=np.uint64)


def _begin_unspaced(kinds_C: np.ndarray) -> np.ndarray:
    """Which characters begin a word: runs of one script, cut after as many characters as the script has in a word."""
    scripts_C = kinds_C & SCRIPT
    runs = np.concatenate([[0], np.flatnonzero(scripts_C[1:] != scripts_C[:-1]) + 1])
    places_C = np.arange(len(kinds_C)) - np.repeat(runs, np.diff(runs, append=len(kinds_C)))
    return ((places_C & LONGEST.take(scripts_C)) == 0) & (scripts_C != SPACE)


def _begin_spaced(kinds_C: np.ndarray) -> np.ndarray:
    """Which characters begin a word. Marks at both ends of what stands between two spaces are words of their own.

    So don't and example.org are one word.
    """
    is_text_C, is_letter_C = (kinds_C & SCRIPT) != SPACE, (kinds_C & IN_WORD) != 0
    begins_C = np.concatenate([is_text_C, [True]])
    begins_C[1:-1] &= ~is_text_C[:-1]
    runs, marks = np.flatnonzero(begins_C), np.flatnonzero(is_text_C & ~is_letter_C)
    letters = np.concatenate([[0], np.cumsum(is_letter_C)])  # before each character
    run = np.searchsorted(runs, marks, side="right")
    is_within = (letters[marks] > letters[runs[run - 1]]) & (letters[marks] < letters[runs[run]])
    outside = marks[~is_within]
    begins_C[outside] = begins_C[outside + 1] = True
    return begins_C[:-1] & is_text_C


@functools.lru_cache(maxsize=2)
def _character_multipliers(bits: int) -> np.ndarray:
    """An odd number for each place in a word of at most 2^bits characters: uint64 [2^bits]. 7 bits for most texts."""
    return splitmix64(np.arange(1, (1 << bits) + 1, dtype=np.uint64)) | np.uint64(1)


@functools.cache
def _character_kinds() -> np.ndarray:
    """What each code point is: uint8 [characters.END]. Made in 0.1 s when it is first needed."""
    from datatrove.utils.text import PUNCTUATION_SET

    kinds = np.where(characters.of_words(), OTHER, MARK).astype(np.uint8)
    for script, blocks in SCRIPTS:
        kinds[characters.characters_in_blocks(*blocks)] = script
    kinds[characters.of_words() | characters.characters_in_blocks(*MARKS)] |= IN_WORD
    kinds[characters.characters_passing(str.isalpha)] |= HAS_LETTER
    kinds[~characters.characters_passing(PUNCTUATION_SET.__contains__)] |= HAS_TEXT
    kinds[characters.characters_passing(str.isspace)] = SPACE
    return kinds
