"""The rules of quality that a source may name: each gives the reason why a text is dropped, and the text it leaves.

Three rules are here: the script of Japanese prose (`kana`), and texts full of words that a list names (`adult`,
`advertising`). The lists are those of HojiChar (Apache-2.0), read as files. Its own filters drop a text for one word,
so アスパラガス falls by アス. Here a text falls if it has many of them, and a word of katakana or Latin letters counts
only as a whole.
"""

import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tpullm.corpus.characters import characters_in_blocks, code_points
from tpullm.corpus.filters import address_lists, gopher, quality_classifier, words
from tpullm.recipe.schema import CorpusConfig
from tpullm.system.errors import UserError

CLASSIFIER = "classifier"
# Of a longer text only the beginning is counted by words: those of a page of 64 MB would take 1 GB. Gopher's rule drops
# texts of over 100,000 words in any case.
BEGINNING = 1_000_000
# Swallow (Okazaki et al. 2024): a text with less hiragana is a list of nouns, one with more katakana a catalogue.
LEAST_HIRAGANA, MOST_KATAKANA, LEAST_JAPANESE = 0.2, 0.5, 0.5
HIRAGANA, KATAKANA = ((0x3041, 0x309F),), ((0x30A0, 0x30FF),)
OTHER_JAPANESE = ((0x3000, 0x303F), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x323AF))
LEAST_WORDS, LEAST_SHARE = 3, 0.01  # different words, and the share of their characters, from which a text is adult
# HojiChar's DiscardAds allows 14 phrases in a page; longer texts may have as many for each 5,000 characters.
MOST_PHRASES, PAGE_CHARACTERS = 14, 5000
# The scripts in which a word counts only as a whole.
WHOLE_WORDS = (re.compile(r"[ァ-ヺー]+"), re.compile(r"[A-Za-z0-9]+"))


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
        elif rule == "repetition":
            reason = "too repetitive" if gopher.is_repetitive(text, language) else ""
        elif rule == "address":
            reason = "listed address" if address_lists.is_listed(url) else ""
        elif rule == CLASSIFIER:
            score = quality_classifier.learned(config.classifier).score(text[:BEGINNING])
            reason = "low score" if score < config.classifier.threshold else ""
        else:
            reason = RULES[rule](text[:BEGINNING], language)
        if reason:
            return reason, text
    return "", text


def check(config: CorpusConfig) -> None:
    """Refuse a rule that cannot be applied, and examples for which no source asks; `UserError` names the key."""
    given, used = config.classifier, any(CLASSIFIER in source.rules for source in config.sources)
    if used and not (given.good and given.bad):
        raise UserError("corpus.classifier: good and bad must name examples, since a source has the rule classifier")
    if given.good and not used:
        advice = "add it to the rules of a source, or remove good"
        raise UserError(f"corpus.classifier: no source has the rule classifier; {advice}")


def _broken_gopher_rule(text: str, language: str) -> str:
    found, limit = words.words_of(text, language), gopher.limits(language)
    return gopher.low_quality(text, found, limit) or gopher.repetitive(text, found, limit)


def _odd_script(text: str, language: str) -> str:
    """Why a text is no Japanese prose by its script; "" if it is."""
    if language != "ja":
        return ""
    points = code_points(text)
    total = max(len(points) - sum(map(text.count, " \n　\t")), 1)
    hiragana, katakana, others = (
        sum(int(np.count_nonzero((points >= first) & (points <= last))) for first, last in blocks)
        for blocks in (HIRAGANA, KATAKANA, OTHER_JAPANESE)
    )
    if hiragana + katakana + others < LEAST_JAPANESE * total:
        return "too little Japanese"
    if katakana > MOST_KATAKANA * total:
        return "mostly katakana"
    return "too little hiragana" if hiragana < LEAST_HIRAGANA * total else ""


def _adult(text: str, language: str) -> str:
    """Whether a text is full of adult words: three different ones, and one character of a hundred in them."""
    forms, own = _english_forms(), words.words_of(text, language)
    is_form_W = forms[np.minimum(np.searchsorted(forms, own.hashes_W), len(forms) - 1)] == own.hashes_W
    found = Counter(own[place].lower() for place in np.flatnonzero(is_form_W).tolist())
    if len(found) < LEAST_WORDS:  # too few of them count as none
        found = Counter()
    if not text.isascii():
        found += listed_word_counts(text, "adult_keywords_ja.txt")
    characters = sum(len(word) * count for word, count in found.items())
    return "adult words" if len(found) >= LEAST_WORDS and characters > LEAST_SHARE * len(text) else ""


def _advertising(text: str, language: str) -> str:
    """Whether a text is full of the phrases of advertising."""
    phrases = listed_word_counts(text, "advertisement_keywords_ja.txt").total()
    return "advertising" if phrases > MOST_PHRASES * max(len(text) / PAGE_CHARACTERS, 1) else ""


# Rules that drop texts and change none, and look at the beginning of a long text alone.
RULES: dict[str, Callable[[str, str], str]] = {
    "gopher": _broken_gopher_rule,
    "fineweb": gopher.fineweb,
    "kana": _odd_script,
    "adult": _adult,
    "advertising": _advertising,
}


def listed_word_counts(text: str, name: str) -> Counter[str]:
    """How often each word of a list is in `text`, where words may lie in each other."""
    listed, lowered = listed_words(name), text.lower()
    points = code_points(lowered)
    found: Counter[str] = Counter()
    may_begin = listed.firsts.take(points[:-1], mode="clip") & listed.seconds.take(points[1:], mode="clip")
    for place in np.flatnonzero(may_begin).tolist():
        for length in listed.lengths.get(lowered[place : place + 2], ()):
            end = place + length
            word = lowered[place:end]
            if word in listed.words:
                around = lowered[max(place - 1, 0) : place], lowered[end : end + 1]
                if not any(script.fullmatch(word) and any(map(script.match, around)) for script in WHOLE_WORDS):
                    found[word] += 1
    return found


class ListedWords(NamedTuple):
    """A list of words.

    Args:
        words: in lower case.
        lengths: the first two characters of a word → the lengths of the words that begin so.
        firsts, seconds: which characters are the first and the second ones of words: bool [END].
    """

    words: frozenset[str]
    lengths: dict[str, set[int]]
    firsts: np.ndarray
    seconds: np.ndarray


@functools.lru_cache(maxsize=8)
def listed_words(name: str) -> ListedWords:
    """A list of HojiChar. Nothing of it is imported: its modules would bring tqdm and more."""
    package = importlib.util.find_spec("hojichar")
    assert package is not None and package.submodule_search_locations, "hojichar is a dependency of this package"
    path = Path(package.submodule_search_locations[0]) / "dict" / name
    lines = path.read_text(encoding="utf-8").lower().splitlines()
    listed = frozenset(word for line in lines if len(word := line.strip()) >= 2 and not word.startswith("<test_"))
    lengths: dict[str, set[int]] = {}
    for word in listed:
        lengths.setdefault(word[:2], set()).add(len(word))
    pairs = code_points("".join(lengths)).reshape(-1, 2)
    firsts, seconds = (characters_in_blocks(*((point, point) for point in points)) for points in pairs.T.tolist())
    return ListedWords(listed, lengths, firsts, seconds)


@functools.cache
def _english_forms() -> np.ndarray:
    """The hashes of the English adult words as they stand in a sentence, at its beginning, and in capitals, sorted."""
    listed = listed_words("adult_keywords_en.txt").words
    forms = [form for word in listed for form in (word, word.capitalize(), word.upper())]
    return np.unique(np.array([words.hash_of_word(form) for form in forms], np.uint64))
