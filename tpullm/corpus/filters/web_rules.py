"""The rules of FineWeb and C4 for pages of the web.

FineWeb's are datatrove's own code, with our words. Its code for C4 takes 55 ms for a MB of English, since it looks for
every phrase in every line. Here a phrase is looked for in the lines of a text that has it: 12 ms. A test runs both.
"""

import functools
import re
from typing import Any

from tpullm.corpus.filters import words

SENTENCE = re.compile(r"[^.!?。！？…]*[.!?。！？…]+[\"'”’」』）)]*|[^.!?。！？…]+")
SPACELESS = ("ja", "zh", "th")
# What FineWeb 2 (Penedo et al. 2025) sets for Japanese; its rule of short lines is off there. A line of dialogue ends
# with a bracket, which is no sentence end in datatrove's set: without it 19 of 150 pages of Soseki fall, with it 1.
JAPANESE = {"line_punct_thr": 0.167, "short_line_thr": 1.0, "char_duplicates_ratio": 0.1, "new_line_ratio": 0.162}
CLOSING = ("」", "』", "）", "…")
REASONS = {
    "empty": "empty",
    "line_punct_ratio": "too few sentence ends",
    "short_line_ratio": "mostly short lines",
    "char_dup_ratio": "repeated lines",
    "list_ratio": "a list",
}
LEAST_SENTENCES, LEAST_WORDS, LONGEST_WORD = 5, 3, 1000
LOREM_IPSUM, SCRIPT, BRACKET = "lorem ipsum", "javascript", "a curly bracket"
DROPPING = (LOREM_IPSUM, BRACKET)  # the text; the others only their line


def fineweb(text: str, language: str) -> str:
    """Why a text is no good page by the rules of FineWeb (Penedo et al. 2024, section 3.6); "" if it is."""
    from datatrove.data import Document

    kept = _fineweb(language).filter(Document(text, ""))
    return "" if kept is True else REASONS[kept[1]]


def c4(text: str, language: str) -> tuple[str, str]:
    """Why a text is no good page by the rules of C4 (Raffel et al. 2020), and the text without its bad lines.

    As in FineWeb, lines need no mark at their end. In scripts without spaces the words of a line are not counted.
    """
    from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, POLICY_SUBSTRINGS

    is_spaced, lowered = language not in SPACELESS, text.lower()
    phrases = [phrase for phrase in (SCRIPT, *POLICY_SUBSTRINGS) if phrase in lowered]
    sentences, kept, is_watched = 0, [], bool(phrases) or LOREM_IPSUM in lowered or "{" in lowered
    for line in map(str.strip, text.splitlines()):
        if is_spaced and not _has_words(line):
            continue
        line = CITATION_REGEX.sub("", line)
        if is_watched and (mark := _mark(line.lower(), phrases)):
            if mark in DROPPING:
                return mark, text
            continue
        if sentences < LEAST_SENTENCES:
            sentences += max(len(SENTENCE.findall(line)), 1)
        kept.append(line)
    return ("too few sentences", text) if sentences < LEAST_SENTENCES else ("", "\n".join(kept).strip())


def _mark(line: str, phrases: list[str]) -> str:
    """What is wrong with a line, the first in C4's order; "" if nothing."""
    if LOREM_IPSUM in line:
        return LOREM_IPSUM
    if SCRIPT in line:
        return SCRIPT
    return BRACKET if "{" in line else next((phrase for phrase in phrases if phrase in line), "")


def _has_words(line: str) -> bool:
    """Whether a line has three words, and none that is very long."""
    found = line.split(None, LEAST_WORDS) if len(line) <= LONGEST_WORD else line.split()
    return len(found) >= LEAST_WORDS and (len(line) <= LONGEST_WORD or max(map(len, found)) <= LONGEST_WORD)


@functools.lru_cache(maxsize=8)
def _fineweb(language: str) -> Any:
    from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    if language != "ja":
        return FineWebQualityFilter(language=tokenizer())
    return FineWebQualityFilter(language=tokenizer(), stop_chars=(*TERMINAL_PUNCTUATION, *CLOSING), **JAPANESE)


@functools.lru_cache(maxsize=1)
def tokenizer() -> Any:
    """Our words as one of datatrove's tokenizers: its own need spaCy, and dictionaries of NLTK."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Tokenizer(WordTokenizer):
        """Words of `words.split`, sentences by their marks."""

        def word_tokenize(self, text: str) -> list[str]:
            return words.of(text).words

        def sent_tokenize(self, text: str) -> list[str]:
            return SENTENCE.findall(text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in SENTENCE.finditer(text)]

    return Tokenizer()
