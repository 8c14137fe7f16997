"""datatrove's filters of FineWeb and C4, with our words: their own code, which is fast enough (20 MB/s and more)."""

import functools
import re
from typing import Any

from tpullm.corpus import words

SENTENCE = re.compile(r"[^.!?。！？…]*[.!?。！？…]+[\"'”’」』）)]*|[^.!?。！？…]+")
SPACELESS = ("ja", "zh", "th")
# What FineWeb 2 (Penedo et al. 2025) sets for Japanese; its rule of short lines is off there. A line of dialogue ends
# with a bracket, which datatrove's set of sentence ends does not have: three of four lines in a novel are of that kind.
JAPANESE = {"line_punct_thr": 0.167, "short_line_thr": 1.0, "char_duplicates_ratio": 0.1, "new_line_ratio": 0.162}
CLOSING = ("」", "』", "）", "…")
REASONS = {
    "empty": "empty",
    "line_punct_ratio": "too few sentence ends",
    "short_line_ratio": "mostly short lines",
    "char_dup_ratio": "repeated lines",
    "list_ratio": "a list",
    "lorem_ipsum": "lorem ipsum",
    "curly_bracket": "a curly bracket",
    "too_few_sentences": "too few sentences",
}


def fineweb(text: str, language: str) -> str:
    """Why a text is no good page by the rules of FineWeb (Penedo et al. 2024, section 3.6); "" if it is."""
    from datatrove.data import Document

    kept = _fineweb(language).filter(Document(text, ""))
    return "" if kept is True else REASONS[kept[1]]


def c4(text: str, language: str) -> tuple[str, str]:
    """Why a text is no good page by the rules of C4 (Raffel et al. 2020), and the text without its bad lines.

    As in FineWeb, lines need no mark at their end. In scripts without spaces the words of a line are not counted.
    """
    from datatrove.data import Document

    document = Document(text, "")
    kept = _c4(language).filter(document)
    return ("", document.text) if kept is True else (REASONS[kept[1]], text)


@functools.lru_cache(maxsize=8)
def _fineweb(language: str) -> Any:
    from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    if language != "ja":
        return FineWebQualityFilter(language=_tokenizer())
    return FineWebQualityFilter(language=_tokenizer(), stop_chars=(*TERMINAL_PUNCTUATION, *CLOSING), **JAPANESE)


@functools.lru_cache(maxsize=8)
def _c4(language: str) -> Any:
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter

    unspaced = {"min_words_per_line": -1, "max_word_length": -1} if language in SPACELESS else {}
    return C4QualityFilter(language=_tokenizer(), filter_no_terminal_punct=False, **unspaced)


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Any:
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
