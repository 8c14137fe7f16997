"""The rules of quality that a source may name: each gives the reason why a text is dropped, and the text it leaves.

Texts full of words that a list names: adult words in Japanese and English, phrases of Japanese advertising.

The lists are those of HojiChar (Apache-2.0), read as files. Its own filters drop a text for one word, so アスパラガス
falls by アス. Here a text falls if it has many of them, and a word of katakana or Latin letters counts only as a whole.

Whether a text of any kind repeats itself so often that it teaches nothing: what is looked for in every source.

The rules are those of Gopher (`gopher.py`), in four ways milder, so that they drop no good text that is not prose:
marks are no words (Python's documentation is full of them), a page of few words is not judged, repeated lines must be
many and hold many characters (the names of the speakers in a play are many), and most pages of a book must repeat.
"""

import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm.corpus.filters import address_lists, cleaning, gopher, quality_classifier, words
from tpullm.corpus.language_detection import code_points
from tpullm.recipe.schema import CorpusConfig
from tpullm.system.errors import UserError

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


# Shares of repeated n-grams grow with the length of a text. The limits are for web pages, so a book is cut into pages.
REPEATED_CHARACTERS = 10_000
# Shorter pages may repeat an n-gram and still be good text (Gopher drops texts under 50 words before it counts).
LEAST_REPEATED_WORDS = 100


def is_repetitive(text: str) -> bool:
    """Whether most pages of `text` repeat their own lines or n-grams too often."""
    pages = [text[start : start + REPEATED_CHARACTERS] for start in range(0, len(text), REPEATED_CHARACTERS)]
    return 2 * sum(map(_is_repetitive_page, pages)) > len(pages)


def _is_repetitive_page(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    limit = gopher.ENGLISH
    if all(share > most for share, most in zip(gopher.repeated(lines, text), limit.lines, strict=True)):
        return True
    found = words.of(text)
    hashes_W, lengths_W = found.hashes_W[found.has_text_W], found.lengths_W[found.has_text_W]
    return len(lengths_W) >= LEAST_REPEATED_WORDS and gopher.repeats_phrases(hashes_W, lengths_W, limit, len(text))


CLASSIFIER = "classifier"
# Of a longer text only the beginning is counted by words: those of a page of 64 MB would take 1 GB. Gopher's rule drops
# texts of over 100,000 words in any case.
BEGINNING = 1_000_000


def _gopher(text: str, language: str) -> str:
    found, limit = words.of(text), gopher.limits(language)
    return gopher.low_quality(text, found, limit) or gopher.repetitive(text, found, limit)


# Rules that drop texts and change none.
RULES: dict[str, Callable[[str, str], str]] = {
    "repetition": lambda text, language: "too repetitive" if is_repetitive(text) else "",
    "gopher": _gopher,
    "fineweb": gopher.fineweb,
    "kana": lambda text, language: cleaning.odd_script(text) if language == "ja" else "",
    "adult": lambda text, language: "adult words" if is_adult(text) else "",
    "advertising": lambda text, language: "advertising" if is_advertising(text) else "",
}


def judge(text: str, language: str, url: str, rules: Sequence[str], config: CorpusConfig) -> tuple[str, str]:
    """Why the first rule that `text` breaks drops it ("" if none does), and the text after the rules.

    Args:
        text: a readable text.
        language: its language; "" if it is not known.
        url: where it was published; "" if it is not known.
        rules: names of rules, in the order in which they are applied.
        config: the settings of the classifier.
    """
    for rule in rules:
        if rule == "c4":
            reason, text = gopher.c4(text, language)
        elif rule == "address":
            reason = "listed address" if address_lists.is_listed(url) else ""
        elif rule == CLASSIFIER:
            score = quality_classifier.learned(config.classifier).score(text[:BEGINNING])
            reason = "low score" if score < config.classifier.threshold else ""
        else:
            reason = RULES[rule](text if rule == "repetition" else text[:BEGINNING], language)
        if reason:
            return reason, text
    return "", text


def check(config: CorpusConfig) -> None:
    """Refuse a rule that cannot be applied, and examples for which no source asks; `UserError` names the key."""
    given, used = config.classifier, any(CLASSIFIER in source.rules for source in config.sources)
    if used and not (given.good and given.bad):
        raise UserError("corpus.classifier: good and bad must name examples, since a source has the rule classifier")
    if given.good and not used:
        raise UserError(
            "corpus.classifier: no source has the rule classifier; add it to the rules of a source, or remove good"
        )
    if not 0 <= given.threshold <= 1:
        raise UserError(f"corpus.classifier.threshold is {given.threshold}; give a number from 0 to 1")
