"""The rules of Gopher, FineWeb and C4 for good text, decided as datatrove's filters decide them on the same words.

- Gopher (Rae et al. 2021, table A1): quality and repetition. datatrove loops over words and n-grams in Python: 1.1 MB/s
  of English with the same words. Here words are hashes in arrays: 11 MB/s, finding the words included.
- FineWeb, C4: pages of the web. datatrove's code for C4 takes 55 ms for a MB of English, since it looks for every
  phrase in every line. Here a phrase is looked for in the lines of a text that has it.

`is_repetitive` is Gopher's rules of repetition for text of any kind, in five ways milder, so that it drops no good text
that is not prose: its limits are twice as high, marks, numbers and rulers are no words (manuals are full of them), a
page of few words is not judged, repeated lines must be many and hold many characters (the names of the speakers in a
play are many), and most pages of a book must repeat.

Tests run both and compare. W words.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.corpus.dedup import combined, splitmix64
from tpullm.corpus.filters import words
from tpullm.corpus.filters.words import Words, hash_of_word

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclass(frozen=True)
class Limits:
    """What a text of one language may have; the defaults are those of Gopher for English.

    Args:
        words: least and most words.
        mean_length: least and greatest mean length of its words, in characters.
        symbols: greatest number of # or … for each word.
        bullets: greatest share of lines that begin with a bullet point.
        ellipses: greatest share of lines that end with an ellipsis.
        letters: least share of words with a letter.
        stop_words: words of which two must be there; none if the language's are not known.
        top: n → greatest share of the characters in the most frequent n-gram.
        repeated: n → greatest share of the characters in n-grams that repeat an earlier one.
        lines: greatest share of the lines, and of the characters in lines, that repeat an earlier one; 1 is no limit.
        paragraphs: the same of paragraphs.
    """

    words: tuple[int, int] = (50, 100_000)
    mean_length: tuple[float, float] = (3, 10)
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    letters: float = 0.8
    stop_words: tuple[str, ...] = STOP_WORDS
    top: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    repeated: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    lines: tuple[float, float] = (0.30, 0.20)
    paragraphs: tuple[float, float] = (0.30, 0.20)


@dataclass(frozen=True)
class WebLimits:
    """What a page may have; the defaults are those of FineWeb (Penedo et al. 2024, section 3.6).

    Args:
        ends: least share of its lines that end as sentences do.
        short: greatest share of its lines that are short.
        repeated: greatest share of its characters in lines that are as one before.
        line_ends: greatest number of line ends for each word.
    """

    ends: float = 0.12
    short: float = 0.67
    repeated: float = 0.01
    line_ends: float = 0.3


LEAST_STOP_WORDS = 2
ENGLISH = Limits()
# FineWeb 2's limits (Penedo et al. 2025, configs/jpn_Jpan.yml) are for the same words: it has Sudachi's of mode A.
JAPANESE = Limits(
    mean_length=(1, 5),
    letters=0.759,
    stop_words=tuple("のにをはたてがとで年し・月れさ"),
    top=((2, 0.121), (3, 0.129), (4, 0.145)),
    repeated=((5, 0.307), (6, 0.283), (7, 0.264), (8, 0.248), (9, 0.234), (10, 0.223)),
    lines=(0.375, 1),
    paragraphs=(1, 1),
)
# Of text of any kind. Manuals repeat phrases, code and headings: by Gopher's own limits 135 of 3,976 pages of twelve
# manuals fell, now 20. Runs of two to four words say less: one long run of a word is counted several times.
ANY = Limits(
    top=(),
    repeated=tuple((n, 2 * share) for n, share in ENGLISH.repeated),
    lines=(2 * ENGLISH.lines[0], 2 * ENGLISH.lines[1]),
)
FINEWEB = WebLimits()
JAPANESE_PAGES = WebLimits(0.167, 1.0, 0.1, 0.162)  # of FineWeb 2 (Penedo et al. 2025)
# Shares of repeated n-grams grow with the length of a text. The limits are for web pages, so a book is cut into pages.
PAGE_CHARACTERS = 10_000
# Shorter pages may repeat an n-gram and still be good text (Gopher drops texts under 50 words before it counts).
LEAST_REPEATED_WORDS = 100
SENTENCE = re.compile(r"[^.!?。！？…]*[.!?。！？…]+[\"'”’」』）)]*|[^.!?。！？…]+")
# A line of dialogue ends with a bracket, which is no sentence end in datatrove's set: without it 19 of 150 pages of
# Soseki fall, with it 1.
CLOSING = ("」", "』", "）", "…")
SHORT_LINE = 30  # characters
LEAST_SENTENCES, LEAST_WORDS, LONGEST_WORD = 5, 3, 1000
LOREM_IPSUM, SCRIPT, BRACKET = "lorem ipsum", "javascript", "a curly bracket"
DROPPING = (LOREM_IPSUM, BRACKET)  # the text; the others only their line


def limits(language: str) -> Limits:
    """The limits for a language (ISO 639-1); of one that is not known only those that hold in every language."""
    stop_words = tuple(words.word_lists("stop_words").get(language, ()))
    known = {"en": ENGLISH, "ja": JAPANESE}
    return known.get(language) or Limits(mean_length=(1, 25), letters=0.7, stop_words=stop_words)


def low_quality(text: str, words: Words, limit: Limits) -> str:
    """Why a text is no prose by Gopher's rules of quality; "" if it is."""
    count, own = len(words), words.has_text_W
    texts = int(np.count_nonzero(own))
    if not limit.words[0] <= texts <= limit.words[1]:
        return "too few words" if texts < limit.words[0] else "too many words"
    mean = int(words.lengths_W[own].sum()) / texts
    if not limit.mean_length[0] <= mean <= limit.mean_length[1]:
        return "words too short" if mean < limit.mean_length[0] else "words too long"
    dots = text.count("...") + text.count("…")
    if text.count("#") / count > limit.symbols or dots / count > limit.symbols:
        return "too many # or …"
    lines = text.splitlines()
    # Most texts have fewer of these marks than lines are allowed to have: then no line is looked at.
    if text.count("•") + text.count("-") > limit.bullets * len(lines):
        if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > limit.bullets:
            return "mostly bullet points"
    if dots > limit.ellipses * len(lines):
        if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > limit.ellipses:
            return "lines that are cut off"
    if np.count_nonzero(words.has_letter_W) / count < limit.letters:
        return "too few words of letters"
    there = (word for word in map(hash_of_word, limit.stop_words) if np.any(words.hashes_W == word))
    enough = not limit.stop_words or len(list(itertools.islice(there, LEAST_STOP_WORDS))) == LEAST_STOP_WORDS
    return "" if enough else "too few stop words"


def repetitive(text: str, words: Words, limit: Limits) -> str:
    """What a text repeats by Gopher's rules of repetition; "" if nothing."""
    # What stands between two and more line ends. As a pattern, `\n{2,}`, this takes four times as long.
    pieces = (piece.lstrip("\n") for piece in text.strip().split("\n\n"))
    paragraphs = [piece for piece in pieces if piece] or [""]
    if any(share > most for share, most in zip(_shares_of_repetition(paragraphs, text), limit.paragraphs, strict=True)):
        return "repeated paragraphs"
    # What stands between line ends. Empty ones count at the beginning and the end of the text only.
    first, *rest = text.split("\n")
    lines = [first, *filter(None, rest[:-1]), *rest[-1:]]
    if any(share > most for share, most in zip(_shares_of_repetition(lines, text), limit.lines, strict=True)):
        return "repeated lines"
    return "repeated phrases" if _repeats_phrases(words.hashes_W, words.lengths_W, limit, len(text)) else ""


def is_repetitive(text: str, language: str) -> bool:
    """Whether most pages of `text` repeat their own lines or n-grams too often."""
    pages = [text[start : start + PAGE_CHARACTERS] for start in range(0, len(text), PAGE_CHARACTERS)]
    return 2 * sum(_is_repetitive_page(page, language) for page in pages) > len(pages)


def _is_repetitive_page(text: str, language: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    if all(share > most for share, most in zip(_shares_of_repetition(lines, text), ANY.lines, strict=True)):
        return True
    found = words.words_of(text, language)
    hashes_W, lengths_W = found.hashes_W[found.has_letter_W], found.lengths_W[found.has_letter_W]
    return len(lengths_W) >= LEAST_REPEATED_WORDS and _repeats_phrases(hashes_W, lengths_W, ANY, len(text))


def _shares_of_repetition(pieces: Sequence[str], text: str) -> tuple[float, float]:
    """The pieces of `text` that are as one before: their share of the pieces, and of its characters."""
    found = _later_repetitions(pieces)
    return len(found) / max(len(pieces), 1), sum(map(len, found)) / max(len(text), 1)


def _later_repetitions(pieces: Sequence[str]) -> list[str]:
    """The pieces that are as one before."""
    if len(set(pieces)) == len(pieces):  # mostly
        return []
    seen: set[str] = set()
    return [piece for piece in pieces if piece in seen or seen.add(piece)]


def _repeats_phrases(hashes_W: np.ndarray, lengths_W: np.ndarray, limit: Limits, characters: int) -> bool:
    """Whether n-grams of words hold more of the characters of a text than `limit` allows."""
    mixed_W = splitmix64(hashes_W)
    if limit.top and _has_top_phrase(mixed_W, lengths_W, limit, characters):
        return True
    # Longer n-grams that repeat lie in the shortest ones that do: those cover more than is counted for any length.
    shortest, most = min(n for n, _ in limit.repeated), min(share for _, share in limit.repeated) * characters
    grams = combined(mixed_W, shortest)
    ordered = np.sort(grams)
    if np.count_nonzero(ordered[1:] == ordered[:-1]) * _longest_phrase(lengths_W, shortest) <= most:
        return False
    repeats = np.ones(len(grams), bool)
    repeats[np.unique(grams, return_index=True)[1]] = False
    covered_W = np.zeros(len(lengths_W), bool)
    for offset in range(shortest):
        covered_W[offset : offset + len(grams)] |= repeats
    if lengths_W[covered_W].sum() <= most:
        return False
    return any(_repeated_characters(mixed_W, lengths_W, n) > share * characters for n, share in limit.repeated)


def _has_top_phrase(mixed_W: np.ndarray, lengths_W: np.ndarray, limit: Limits, characters: int) -> bool:
    """Whether the most frequent n-gram of a length, with its spaces, holds more than its share."""
    longest, least = max(n for n, _ in limit.top), min(share for _, share in limit.top) * characters
    most = least // (_longest_phrase(lengths_W, longest) + longest - 1)
    for n, share in limit.top:
        grams = combined(mixed_W, n)
        ordered = np.sort(grams)
        # An n-gram is at most as frequent as the shorter one in it, so the search mostly ends after one sort.
        if not _occurs_too_often(ordered, most):
            return False
        if not _occurs_too_often(ordered, share * characters // (_longest_phrase(lengths_W, n) + n - 1)):
            continue
        _, first, counts = np.unique(grams, return_index=True, return_counts=True)
        count = counts.max()
        start = first[counts == count].min()  # of several the one that comes first
        if int(count) * (int(lengths_W[start : start + n].sum()) + n - 1) > share * characters:
            return True
    return False


def _longest_phrase(lengths_W: np.ndarray, n: int) -> int:
    """Characters of the longest run of `n` words, or of all words if there are fewer."""
    ends = np.cumsum(lengths_W)
    if len(ends) <= n:
        return int(ends[-1]) if len(ends) else 0
    return max(int((ends[n:] - ends[:-n]).max()), int(ends[n - 1]))


def _occurs_too_often(ordered: np.ndarray, times: float) -> bool:
    """Whether one of the sorted values occurs more often than the limit."""
    start = int(times)
    return bool((ordered[start:] == ordered[: max(len(ordered) - start, 0)]).any())


def _repeated_characters(mixed_W: np.ndarray, lengths_W: np.ndarray, n: int) -> int:
    """Characters of n-grams that are as one before. After one that repeats the next begins behind it, as in datatrove.

    Args:
        mixed_W: of each word a hash, uint64.
        lengths_W: of each word its characters.
        n: words of an n-gram.
    """
    ends = np.concatenate([[0], np.cumsum(lengths_W)])
    grams, sums = combined(mixed_W, n).tolist(), (ends[n:] - ends[:-n]).tolist()
    seen: set[int] = set()
    found = place = 0
    while place < len(grams):
        if grams[place] in seen:
            found += sums[place]
            place += n
        else:
            seen.add(grams[place])
            place += 1
    return found


def fineweb(text: str, language: str) -> str:
    """Why a text is no good page by the rules of FineWeb; "" if it is."""
    limit, marks = JAPANESE_PAGES if language == "ja" else FINEWEB, sentence_ends(language)
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "empty"
    if sum(line[-1] in marks for line in lines) / len(lines) < limit.ends:
        return "too few sentence ends"
    if sum(len(line) <= SHORT_LINE for line in lines) / len(lines) > limit.short:
        return "mostly short lines"
    line_ends = text.count("\n")
    if sum(map(len, _later_repetitions(lines))) / (len(text) - line_ends) > limit.repeated:
        return "repeated lines"
    # A text has at least as many words as what stands between white space.
    has_few = line_ends / len(text.split()) > limit.line_ends
    return "a list" if has_few and line_ends / len(words.words_of(text, language)) > limit.line_ends else ""


def c4(text: str, language: str) -> tuple[str, str]:
    """Why a text is no good page by the rules of C4 (Raffel et al. 2020), and the text without its bad lines.

    As in FineWeb, lines need no mark at their end. In scripts without spaces the words of a line are not counted.
    """
    from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, POLICY_SUBSTRINGS

    lines, lowered = list(map(str.strip, text.splitlines())), text.lower()
    phrases = [phrase for phrase in (SCRIPT, *POLICY_SUBSTRINGS) if phrase in lowered]
    if language not in words.SPACELESS:
        lines = [line for line in lines if len(line.split(None, LEAST_WORDS)) >= LEAST_WORDS]
        lines = [line for line in lines if len(line) <= LONGEST_WORD or max(map(len, line.split())) <= LONGEST_WORD]
    if "[" in text:
        lines = [CITATION_REGEX.sub("", line) for line in lines]
    if phrases or LOREM_IPSUM in lowered or "{" in lowered:
        # The reasons in C4's order.
        reasons = {LOREM_IPSUM: LOREM_IPSUM, SCRIPT: SCRIPT, "{": BRACKET} | dict.fromkeys(phrases, SCRIPT)
        kept = []
        for line in lines:
            lowered = line.lower()
            reason = next((reason for mark, reason in reasons.items() if mark in lowered), "")
            if reason in DROPPING:
                return reason, text
            if not reason:
                kept.append(line)
        lines = kept
    # An empty line counts as one, as in datatrove.
    counts = itertools.accumulate(max(len(SENTENCE.findall(line)), 1) for line in lines)
    enough = any(count >= LEAST_SENTENCES for count in counts)
    return ("", "\n".join(lines).strip()) if enough else ("too few sentences", text)


@functools.cache
def sentence_ends(language: str) -> frozenset[str]:
    """The marks that end a sentence: those of all scripts that datatrove knows."""
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    return frozenset(TERMINAL_PUNCTUATION).union(CLOSING if language == "ja" else ())
