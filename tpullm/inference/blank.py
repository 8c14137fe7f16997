"""Filling a blank with words, using the text on both sides of it.

A causal model only ever looks left, but it gives every whole text a probability, and by Bayes' rule
P(word | left, right) is proportional to P(left + word + right). The model itself proposes the words: it goes on from
the left side by the likeliest tokens, and each string on the way is a candidate.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpullm.errors import UserError
from tpullm.inference.scoring import next_log_probabilities, text_log_probabilities
from tpullm.inference.session import Session
from tpullm.tokenizer import japanese_words

BLANK = re.compile(r"【[?？]】")
_JAPANESE = re.compile("[\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]")
_CANDIDATES = 256  # texts whose probability is computed whole
_BEGINNINGS = 256  # beginnings of candidates that are made longer at a time
_LOOKS_PER_KEPT = 16  # punctuation and the like is passed over
_TOKENS = 8  # longest candidate, in tokens
_MORPHEMES = 3  # and in Japanese words (読みました is three)
_LEAST = math.log(1e-5)  # beginnings less likely than this share of the likeliest are given up
_WORD_SHARE = 0.05  # with less than this on single words, the blank is one for a phrase
_AFFIXES = ("接頭辞", "接尾辞")
_JOINERS = "'’-・ー"  # may stand within a word: don't, well-known, アイス・クリーム


@dataclass(frozen=True)
class _Beginning:
    """A candidate, or the beginning of one.

    `ids` is a text up to here, `owed` what of the left side's bytes they still lack, `written` the bytes behind it.
    """

    ids: tuple[int, ...]
    owed: bytes
    written: bytes
    log_probability: float


def fill(session: Session, text: str, count: int = 0) -> list[tuple[str, float]]:
    """The words that may stand at 【?】 and their probabilities, likeliest first.

    The probabilities are over all the words found; the text stands at the beginning of a document, and what comes after
    it is free.

    Args:
        text: holds 【?】 once.
        count: how many words to return; 0 is all.

    Raises:
        UserError: there is not exactly one blank, no word was found, or the text is longer than the context.
    """
    sides = BLANK.split(text)
    if len(sides) != 2:
        raise UserError(f"blank: {len(sides) - 1} times 【?】 in {text!r}; write it exactly once, for the missing word")
    left, right = sides
    candidates = propose(session, left, right)
    if not candidates:
        raise UserError(f"blank: the model finds no word for 【?】 in {text!r}; give it more text on the left")
    scores = np.array(text_log_probabilities(session, [left + word + right for word in candidates]))
    probabilities = np.exp(scores - scores.max())
    single = np.array([is_one_word(left, word, right) for word in candidates])
    if probabilities[single].sum() >= _WORD_SHARE * probabilities.sum():
        probabilities = np.where(single, probabilities, 0)
    probabilities /= probabilities.sum()
    order = [index for index in np.argsort(-probabilities, kind="stable") if probabilities[index] > 0]
    return [(candidates[index], float(probabilities[index])) for index in order[: count or None]]


def propose(session: Session, left: str, right: str) -> list[str]:
    """Up to 256 strings that may stand between `left` and `right`, those that `right` goes on from best first."""
    goes_on = _beginnings_of(session, right.encode())
    begun = [_start(session, left)]
    found: dict[str, float] = {}
    for _ in range(_TOKENS):
        log_p = next_log_probabilities(session, [list(beginning.ids) for beginning in begun])
        # A cheap look at the right side: does it go on from here?
        scores = np.logaddexp.reduce(log_p[:, goes_on], axis=1) if goes_on else np.zeros(len(begun))
        for beginning, score in zip(begun, scores, strict=True):
            for word, shared in _words(beginning, right):
                log_probability = beginning.log_probability + (0.0 if shared else score)
                found[word] = np.logaddexp(found.get(word, -np.inf), log_probability)
        begun = _longer(session, begun, log_p)
        if not begun:
            break
    return sorted(found, key=lambda word: -found[word])[:_CANDIDATES]


def _start(session: Session, left: str) -> _Beginning:
    """The left side without its last token, which may be split otherwise when a word follows it."""
    tokenizer = session.tokenizer
    ids = tokenizer.encode(left.rstrip(" "))[:-1]
    there = sum(len(tokenizer.bytes_of(token)) for token in ids)
    return _Beginning((*tokenizer.begin, *ids), left.encode()[there:], b"", 0.0)


def _beginnings_of(session: Session, text: bytes) -> list[int]:
    """The tokens that `text` may begin with, longer ones that begin with it included; none for an empty text."""
    if not text:
        return []
    every = ((token, session.tokenizer.bytes_of(token)) for token in range(session.tokenizer.vocabulary_size))
    return [token for token, data in every if data and (text.startswith(data) or data.startswith(text))]


def _longer(session: Session, begun: list[_Beginning], log_p: np.ndarray) -> list[_Beginning]:
    """The likeliest beginnings that are one token longer and may become a word."""
    tokenizer = session.tokenizer
    scores = (
        np.array([beginning.log_probability for beginning in begun])[:, None] + log_p[:, : tokenizer.vocabulary_size]
    )
    for row, beginning in enumerate(begun):
        if owed := _beginnings_of(session, beginning.owed):
            scores[row, np.setdiff1d(np.arange(scores.shape[1]), owed)] = -np.inf
    # Far fewer than all are looked at one by one: a model that is unsure has a hundred thousand.
    likeliest = np.argsort(-scores, axis=None)[: _LOOKS_PER_KEPT * _BEGINNINGS]
    longer: list[_Beginning] = []
    for index in likeliest.tolist():
        row, token = divmod(index, scores.shape[1])
        score = float(scores[row, token])
        if len(longer) == _BEGINNINGS or (longer and score < longer[0].log_probability + _LEAST) or score == -np.inf:
            break
        beginning, data = begun[row], tokenizer.bytes_of(token)
        written = beginning.written + data[len(beginning.owed) :]
        if data and _may_be_word(written):
            longer.append(_Beginning((*beginning.ids, token), beginning.owed[len(data) :], written, score))
    return longer


def _may_be_word(written: bytes) -> bool:
    """Letters, marks and numbers, of few enough words; the last character may be half written."""
    text = written.decode("utf-8", errors="ignore")
    letters = all(character in _JOINERS or unicodedata.category(character)[0] in "LMN" for character in text)
    return letters and len(_morphemes(text)) <= _MORPHEMES


def _words(beginning: _Beginning, right: str) -> Iterator[tuple[str, bool]]:
    """The candidates in the beginning, and whether its last token holds some of the right side too (今日は: は)."""
    try:
        text = beginning.written.decode()
    except UnicodeDecodeError:
        return
    for shared in range(len(text)):
        word, rest = text[: len(text) - shared], text[len(text) - shared :]
        if not beginning.owed and right.startswith(rest) and any(character.isalnum() for character in word):
            yield word, bool(shared)


def is_one_word(left: str, word: str, right: str) -> bool:
    """Whether `word` is one word where it stands: 曇り is, 曇りな is not (Sudachi's longest units, mode C).

    A prefix or suffix belongs to its word (お茶); what is not Japanese is divided by spaces, which no candidate holds.
    """
    if not _JAPANESE.search(word):
        return True
    start, end = len(left), len(left) + len(word)
    within = [part for part in _morphemes(left + word + right) if part[1] > start and part[0] < end]
    if within[0][0] != start or within[-1][1] != end:  # read together with its neighbour (今日は as a greeting)
        within = _morphemes(word)
    return sum(not affix for _, _, affix in within) == 1


@functools.lru_cache(maxsize=1 << 14)
def _morphemes(text: str) -> list[tuple[int, int, bool]]:
    """Start and end of each Japanese morpheme, and whether it is a prefix or suffix."""
    if not _JAPANESE.search(text):
        return []
    return [(m.begin(), m.end(), m.part_of_speech()[0] in _AFFIXES) for m in japanese_words.analyser("C")(text)]
