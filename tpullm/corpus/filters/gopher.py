"""The rules of Gopher (Rae et al. 2021, table A1) for quality and for repetition, decided as datatrove decides them.

datatrove's filters loop over words and n-grams in Python: 1.1 MB/s of English with the same words. Here words are
hashes in arrays: 11 MB/s, finding the words included. A test runs both, and the decisions are the same. W words.

The rules of FineWeb and C4 for pages of the web.

Both decide as datatrove's filters do on the same words, which a test holds. Its code for C4 takes 55 ms for a MB of
English, since it looks for every phrase in every line. Here a phrase is looked for in the lines of a text that has it.
FineWeb's last rule compares line ends with words, which are counted only if there may be too few.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.corpus.dedup import combined, splitmix64
from tpullm.corpus.filters import words
from tpullm.corpus.filters.words import Words, hash_of

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
JAPANESE_STOP_WORDS = tuple("のにをはたてがとで年し・月れさ")  # FineWeb 2 (Penedo et al. 2025), configs/jpn_Jpan.yml


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


LEAST_STOP_WORDS = 2
# Words that are frequent in one of these languages only.
OTHER_STOP_WORDS = {
    "fr": tuple("le la les et des du est une dans qui pour au".split()),
    "de": tuple("der die und das ist nicht den von mit ein eine zu".split()),
    "es": tuple("el los las que una por con del se es y para".split()),
    "it": tuple("il di che gli della per sono con non è una nel".split()),
    "pt": tuple("os que uma não com para do da em é ao dos".split()),
    "nl": tuple("het een van en niet op zijn dat voor met aan ook".split()),
}
ENGLISH = Limits()
# FineWeb 2's limits are for the same words: it has Sudachi's of mode A.
JAPANESE = Limits(
    mean_length=(1, 5),
    letters=0.759,
    stop_words=JAPANESE_STOP_WORDS,
    top=((2, 0.121), (3, 0.129), (4, 0.145)),
    repeated=((5, 0.307), (6, 0.283), (7, 0.264), (8, 0.248), (9, 0.234), (10, 0.223)),
    lines=(0.375, 1),
    paragraphs=(1, 1),
)


def limits(language: str) -> Limits:
    """The limits for a language (ISO 639-1); of one that is not known only those that hold in every language."""
    if language in ("en", "ja"):
        return ENGLISH if language == "en" else JAPANESE
    return Limits(mean_length=(1, 25), letters=0.7, stop_words=OTHER_STOP_WORDS.get(language, ()))


def low_quality(text: str, words: Words, limit: Limits) -> str:
    """Why a text is no prose by Gopher's rules of quality; "" if it is."""
    count, own = len(words), words.has_text_W
    texts = int(np.count_nonzero(own))
    if not limit.words[0] <= texts <= limit.words[1]:
        return "too few words" if texts < limit.words[0] else "too many words"
    mean = int(words.lengths_W[own].sum()) / texts
    if not limit.mean_length[0] <= mean <= limit.mean_length[1]:
        return "words too short" if mean < limit.mean_length[0] else "words too long"
    if text.count("#") / count > limit.symbols or (text.count("...") + text.count("…")) / count > limit.symbols:
        return "too many # or …"
    if reason := _odd_lines(text, limit):
        return reason
    if np.count_nonzero(words.has_letter_W) / count < limit.letters:
        return "too few words of letters"
    return "" if _has_stop_words(words, limit.stop_words) else "too few stop words"


def _odd_lines(text: str, limit: Limits) -> str:
    lines = text.splitlines()
    # Most texts have fewer of these marks than lines are allowed to have: then no line is looked at.
    if text.count("•") + text.count("-") > limit.bullets * len(lines):
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
        if bullets / len(lines) > limit.bullets:
            return "mostly bullet points"
    if text.count("...") + text.count("…") > limit.ellipses * len(lines):
        ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
        if ellipses / len(lines) > limit.ellipses:
            return "lines that are cut off"
    return ""


def _has_stop_words(words: Words, stop_words: tuple[str, ...]) -> bool:
    found = 0
    for word in map(hash_of, stop_words):
        found += bool(np.any(words.hashes_W == word))
        if found == LEAST_STOP_WORDS:
            return True
    return not stop_words


def repetitive(text: str, words: Words, limit: Limits) -> str:
    """What a text repeats by Gopher's rules of repetition; "" if nothing."""
    if any(share > most for share, most in zip(repeated(_paragraphs(text), text), limit.paragraphs, strict=True)):
        return "repeated paragraphs"
    if any(share > most for share, most in zip(repeated(_lines(text), text), limit.lines, strict=True)):
        return "repeated lines"
    return "repeated phrases" if repeats_phrases(words.hashes_W, words.lengths_W, limit, len(text)) else ""


def _paragraphs(text: str) -> list[str]:
    """What stands between two and more line ends. As a pattern, `\\n{2,}`, this takes four times as long."""
    return list(filter(None, (piece.lstrip("\n") for piece in text.strip().split("\n\n")))) or [""]


def _lines(text: str) -> list[str]:
    """What stands between line ends: `\\n+`. Empty ones count at the beginning and the end of the text only."""
    first, *rest = text.split("\n")
    return [first, *filter(None, rest[:-1]), *rest[-1:]]


def repeated(pieces: Sequence[str], text: str) -> tuple[float, float]:
    """The pieces of `text` that are as one before: their share of the pieces, and of its characters."""
    found = again(pieces)
    return len(found) / max(len(pieces), 1), sum(map(len, found)) / max(len(text), 1)


def again(pieces: Sequence[str]) -> list[str]:
    """The pieces that are as one before."""
    if len(set(pieces)) == len(pieces):  # mostly
        return []
    seen: set[str] = set()
    return [piece for piece in pieces if piece in seen or seen.add(piece)]


def repeats_phrases(hashes_W: np.ndarray, lengths_W: np.ndarray, limit: Limits, characters: int) -> bool:
    """Whether n-grams of words hold more of the characters of a text than `limit` allows."""
    mixed_W = splitmix64(hashes_W)
    return _has_top_phrase(mixed_W, lengths_W, limit, characters) or _has_repeats(mixed_W, lengths_W, limit, characters)


def _has_top_phrase(mixed_W: np.ndarray, lengths_W: np.ndarray, limit: Limits, characters: int) -> bool:
    longest, least = max(n for n, _ in limit.top), min(share for _, share in limit.top) * characters
    most = least // (_widest(lengths_W, longest) + longest - 1)
    for n, share in limit.top:
        grams = combined(mixed_W, n)
        ordered = np.sort(grams)
        # An n-gram is at most as frequent as the shorter one in it, so the search mostly ends after one sort.
        if not _has_more(ordered, most):
            return False
        may_be = _has_more(ordered, share * characters // (_widest(lengths_W, n) + n - 1))
        if may_be and _top_characters(grams, lengths_W, n) > share * characters:
            return True
    return False


def _widest(lengths_W: np.ndarray, n: int) -> int:
    """Characters of the longest run of `n` words, or of all words if there are fewer."""
    ends = np.cumsum(lengths_W)
    if len(ends) <= n:
        return int(ends[-1]) if len(ends) else 0
    return max(int((ends[n:] - ends[:-n]).max()), int(ends[n - 1]))


def _has_more(ordered: np.ndarray, times: float) -> bool:
    """Whether one of some sorted values is there more than so many times."""
    start = int(times)
    return bool((ordered[start:] == ordered[: max(len(ordered) - start, 0)]).any())


def _top_characters(grams: np.ndarray, lengths_W: np.ndarray, n: int) -> int:
    """Characters of all of the most frequent n-gram, with its spaces; of several the one that comes first."""
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    count = counts.max()
    start = first[counts == count].min()
    return int(count) * (int(lengths_W[start : start + n].sum()) + n - 1)


def _has_repeats(mixed_W: np.ndarray, lengths_W: np.ndarray, limit: Limits, characters: int) -> bool:
    # Longer n-grams that repeat lie in the shortest ones that do: those cover more than is counted for any length.
    shortest, most = min(n for n, _ in limit.repeated), min(share for _, share in limit.repeated) * characters
    grams = combined(mixed_W, shortest)
    ordered = np.sort(grams)
    repeats = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
    if repeats * _widest(lengths_W, shortest) <= most:
        return False
    if lengths_W[_covered(grams, shortest, len(lengths_W))].sum() <= most:
        return False
    return any(repeated_characters(mixed_W, lengths_W, n) > share * characters for n, share in limit.repeated)


def _covered(grams: np.ndarray, n: int, words: int) -> np.ndarray:
    """Which words lie in an n-gram that is as one before: bool [W]."""
    repeats = np.ones(len(grams), bool)
    repeats[np.unique(grams, return_index=True)[1]] = False
    covered_W = np.zeros(words, bool)
    for offset in range(n):
        covered_W[offset : offset + len(grams)] |= repeats
    return covered_W


def repeated_characters(mixed_W: np.ndarray, lengths_W: np.ndarray, n: int) -> int:
    """Characters of n-grams that are as one before. After one that repeats the next begins behind it, as in datatrove.

    Args:
        mixed_W: of each word a hash, uint64.
        lengths_W: of each word its characters.
        n: words of an n-gram.
    """
    grams, sums = combined(mixed_W, n).tolist(), _sums(lengths_W, n).tolist()
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


def _sums(lengths_W: np.ndarray, n: int) -> np.ndarray:
    """Characters of each run of `n` words: int64 [W - n + 1]."""
    ends = np.concatenate([[0], np.cumsum(lengths_W)])
    return ends[n:] - ends[:-n] if n else np.zeros(0, np.int64)


SENTENCE = re.compile(r"[^.!?。！？…]*[.!?。！？…]+[\"'”’」』）)]*|[^.!?。！？…]+")
SPACELESS = ("ja", "zh", "th")
# A line of dialogue ends with a bracket, which is no sentence end in datatrove's set: without it 19 of 150 pages of
# Soseki fall, with it 1.
CLOSING = ("」", "』", "）", "…")
SHORT_LINE = 30  # characters
LEAST_SENTENCES, LEAST_WORDS, LONGEST_WORD = 5, 3, 1000
LOREM_IPSUM, SCRIPT, BRACKET = "lorem ipsum", "javascript", "a curly bracket"
DROPPING = (LOREM_IPSUM, BRACKET)  # the text; the others only their line


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


FINEWEB = WebLimits()
JAPANESE_PAGES = WebLimits(0.167, 1.0, 0.1, 0.162)  # of FineWeb 2 (Penedo et al. 2025)


def fineweb(text: str, language: str) -> str:
    """Why a text is no good page by the rules of FineWeb; "" if it is."""
    limit, marks = JAPANESE_PAGES if language == "ja" else FINEWEB, ends(language)
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "empty"
    if sum(line[-1] in marks for line in lines) / len(lines) < limit.ends:
        return "too few sentence ends"
    if sum(len(line) <= SHORT_LINE for line in lines) / len(lines) > limit.short:
        return "mostly short lines"
    line_ends = text.count("\n")
    if sum(map(len, again(lines))) / (len(text) - line_ends) > limit.repeated:
        return "repeated lines"
    # A text has at least as many words as what stands between white space.
    has_few = line_ends / len(text.split()) > limit.line_ends
    return "a list" if has_few and line_ends / len(words.of(text)) > limit.line_ends else ""


def c4(text: str, language: str) -> tuple[str, str]:
    """Why a text is no good page by the rules of C4 (Raffel et al. 2020), and the text without its bad lines.

    As in FineWeb, lines need no mark at their end. In scripts without spaces the words of a line are not counted.
    """
    from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, POLICY_SUBSTRINGS

    lines, lowered = list(map(str.strip, text.splitlines())), text.lower()
    phrases = [phrase for phrase in (SCRIPT, *POLICY_SUBSTRINGS) if phrase in lowered]
    if language not in SPACELESS:
        lines = [line for line in lines if len(line.split(None, LEAST_WORDS)) >= LEAST_WORDS and not _is_odd(line)]
    if "[" in text:
        lines = [CITATION_REGEX.sub("", line) for line in lines]
    if phrases or LOREM_IPSUM in lowered or "{" in lowered:
        marks = [_mark(line.lower(), phrases) for line in lines]
        if found := next((mark for mark in marks if mark in DROPPING), ""):
            return found, text
        lines = [line for line, mark in zip(lines, marks, strict=True) if not mark]
    return ("", "\n".join(lines).strip()) if _has_sentences(lines) else ("too few sentences", text)


def _mark(line: str, phrases: list[str]) -> str:
    """What is wrong with a line, the first in C4's order; "" if nothing."""
    if LOREM_IPSUM in line:
        return LOREM_IPSUM
    if SCRIPT in line:
        return SCRIPT
    return BRACKET if "{" in line else next((phrase for phrase in phrases if phrase in line), "")


def _is_odd(line: str) -> bool:
    """Whether a line has a very long word."""
    return len(line) > LONGEST_WORD and max(map(len, line.split())) > LONGEST_WORD


def _has_sentences(lines: list[str]) -> bool:
    """Whether the lines have five sentences. An empty line counts as one, as in datatrove."""
    found = 0
    for line in lines:
        found += max(len(SENTENCE.findall(line)), 1)
        if found >= LEAST_SENTENCES:
            return True
    return False


@functools.cache
def ends(language: str) -> frozenset[str]:
    """The marks that end a sentence: those of all scripts that datatrove knows."""
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    return frozenset(TERMINAL_PUNCTUATION).union(CLOSING if language == "ja" else ())
