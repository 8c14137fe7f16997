"""The rules of FineWeb and C4 for pages of the web.

Both decide as datatrove's filters do on the same words, which a test holds. Its code for C4 takes 55 ms for a MB of
English, since it looks for every phrase in every line. Here a phrase is looked for in the lines of a text that has it.
FineWeb's last rule compares line ends with words, which are counted only if there may be too few.
"""

import functools
import re
from dataclasses import dataclass

from tpullm.corpus.filters import gopher, words

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
class Limits:
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


FINEWEB = Limits()
JAPANESE = Limits(0.167, 1.0, 0.1, 0.162)  # of FineWeb 2 (Penedo et al. 2025)


def fineweb(text: str, language: str) -> str:
    """Why a text is no good page by the rules of FineWeb; "" if it is."""
    limit, marks = JAPANESE if language == "ja" else FINEWEB, ends(language)
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "empty"
    if sum(line[-1] in marks for line in lines) / len(lines) < limit.ends:
        return "too few sentence ends"
    if sum(len(line) <= SHORT_LINE for line in lines) / len(lines) > limit.short:
        return "mostly short lines"
    line_ends = text.count("\n")
    if sum(map(len, gopher.again(lines))) / (len(text) - line_ends) > limit.repeated:
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
