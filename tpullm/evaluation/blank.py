"""Filling a blank with words, using the text on both sides of it.

A causal model reads from left to right, but it gives a probability to every whole text, and by Bayes' rule
P(word | left, right) is proportional to P(left + word + right). The model also proposes the words: it continues the
left side with its likeliest tokens, and each string that this gives is a candidate.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpullm.engine.session import Session
from tpullm.evaluation.scoring import next_log_probabilities, text_log_probabilities
from tpullm.system.errors import UserError
from tpullm.tokenizer import japanese_words

BLANK = re.compile(r"【[?？]】")
_JAPANESE = re.compile("[\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]")
_BEGINNINGS = 256  # beginnings of candidates that are kept after each token
_LOOKS_PER_KEPT = 16  # extensions tried for each that is kept, since many are punctuation
_TOKENS = 8  # longest candidate, in tokens
_MORPHEMES = 3  # longest candidate, in Japanese words (読みました is three)
_LEAST = math.log(1e-5)  # a beginning is dropped if it is less likely than this share of the likeliest
_WORD_SHARE = 0.05  # single words with less probability than this mean that the blank asks for a phrase
_AROUND = 500  # characters on each side of a word that decide what is one word
_JOINERS = "'’-・ー"  # allowed within a word: don't, well-known, アイス・クリーム


@dataclass(frozen=True)
class _Beginning:
    """A candidate, or the beginning of one.

    Args:
        ids: the tokens of the text so far.
        owed: the last bytes of the left side, as far as `ids` do not hold them yet.
        written: the bytes of `ids` after the left side.
    """

    ids: tuple[int, ...]
    owed: bytes
    written: bytes
    log_probability: float


def fill_blank(session: Session, text: str, count: int = 0) -> list[tuple[str, float]]:
    """The words that fit 【?】 and their probabilities, likeliest first.

    The probabilities of all words found sum to 1. The text is read as the beginning of a document; its continuation
    is free.

    Args:
        text: holds 【?】 once.
        count: how many words to return; 0: all.

    Raises:
        UserError: there is not exactly one blank, no word was found, or the text is longer than the context.
    """
    sides = BLANK.split(text)
    if len(sides) != 2:
        raise UserError(f"blank: {len(sides) - 1} times 【?】 in {text!r}; write it exactly once, for the missing word")
    left, right = sides
    candidates = propose_between(session, left, right)
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


def propose_between(session: Session, left: str, right: str) -> list[str]:
    """Up to 256 strings that fit between `left` and `right`; those that `right` continues best come first."""
    continues, tokenizer = _beginnings_of(session, right.encode()), session.tokenizer
    ids = tokenizer.encode(left.rstrip(" "))[:-1]  # the tokenizer can split the last token differently before a word
    there = sum(len(tokenizer.bytes_of(token)) for token in ids)
    begun = [_Beginning((*tokenizer.begin, *ids), left.encode()[there:], b"", 0.0)]
    found: dict[str, float] = {}
    for _ in range(_TOKENS):
        log_p = next_log_probabilities(session, [list(beginning.ids) for beginning in begun])
        # A cheap estimate of the right side: the probability of its first token.
        scores = np.logaddexp.reduce(log_p[:, continues], axis=1) if continues else np.zeros(len(begun))
        for beginning, score in zip(begun, scores, strict=True):
            for word, shared in _candidate_words(beginning, right):
                log_probability = beginning.log_probability + (0.0 if shared else score)
                found[word] = np.logaddexp(found.get(word, -np.inf), log_probability)
        begun = _extend_beginnings(session, begun, log_p)
        if not begun:
            break
    return sorted(found, key=lambda word: -found[word])[:256]


def _beginnings_of(session: Session, text: bytes) -> list[int]:
    """The tokens that `text` can begin with, and those that begin with `text`; none for an empty text."""
    if not text:
        return []
    every = ((token, session.tokenizer.bytes_of(token)) for token in range(session.tokenizer.vocabulary_size))
    return [token for token, data in every if data and (text.startswith(data) or data.startswith(text))]


def _extend_beginnings(session: Session, begun: list[_Beginning], log_p: np.ndarray) -> list[_Beginning]:
    """The likeliest beginnings that are one token longer and can become a word."""
    tokenizer = session.tokenizer
    before = np.array([beginning.log_probability for beginning in begun])
    scores = before[:, None] + log_p[:, : tokenizer.vocabulary_size]
    for row, beginning in enumerate(begun):
        if owed := _beginnings_of(session, beginning.owed):
            scores[row, np.setdiff1d(np.arange(scores.shape[1]), owed)] = -np.inf
    # Only the likeliest are checked one by one: an unsure model has a hundred thousand extensions.
    looks = min(_LOOKS_PER_KEPT * _BEGINNINGS, scores.size)
    likeliest = np.argpartition(-scores, looks - 1, axis=None)[:looks]
    likeliest = likeliest[np.argsort(-scores.flat[likeliest], kind="stable")]
    longer: list[_Beginning] = []
    for index in likeliest.tolist():
        row, token = divmod(index, scores.shape[1])
        score = float(scores[row, token])
        if len(longer) == _BEGINNINGS or (longer and score < longer[0].log_probability + _LEAST) or score == -np.inf:
            break
        beginning, data = begun[row], tokenizer.bytes_of(token)
        written = beginning.written + data[len(beginning.owed) :]
        text = written.decode("utf-8", errors="ignore")  # the last character can be incomplete
        is_word = all(character in _JOINERS or unicodedata.category(character)[0] in "LMN" for character in text)
        if data and is_word and len(_morphemes(text)) <= _MORPHEMES:
            longer.append(_Beginning((*beginning.ids, token), beginning.owed[len(data) :], written, score))
    return longer


def _candidate_words(beginning: _Beginning, right: str) -> Iterator[tuple[str, bool]]:
    """The candidates in a beginning, and whether its last token also holds a part of the right side (は in 今日は)."""
    try:
        text = beginning.written.decode()
    except UnicodeDecodeError:
        return
    for shared in range(len(text)):
        word, rest = text[: len(text) - shared], text[len(text) - shared :]
        if not beginning.owed and right.startswith(rest) and any(character.isalnum() for character in word):
            yield word, bool(shared)


def is_one_word(left: str, word: str, right: str) -> bool:
    """Whether `word` is one word in its context: 曇り is, 曇りな is not (Sudachi's longest units, mode C).

    A prefix or suffix belongs to its word (お茶). Other scripts separate words by spaces, which no candidate holds.
    """
    if not _JAPANESE.search(word):
        return True
    left, right = left[-_AROUND:], right[:_AROUND]
    start, end = len(left), len(left) + len(word)
    within = [part for part in _morphemes(left + word + right) if part[1] > start and part[0] < end]
    if within[0][0] != start or within[-1][1] != end:  # Sudachi joined it with its neighbour (今日は as a greeting)
        within = _morphemes(word)
    return sum(not affix for _, _, affix in within) == 1


@functools.lru_cache(maxsize=1 << 14)
def _morphemes(text: str) -> list[tuple[int, int, bool]]:
    """Start and end of each Japanese morpheme, and whether it is a prefix or a suffix."""
    found = japanese_words.analyser("C")(text) if _JAPANESE.search(text) else []
    return [(m.begin(), m.end(), m.part_of_speech()[0] in ("接頭辞", "接尾辞")) for m in found]
