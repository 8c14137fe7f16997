"""Our words for datatrove's filters, so that both judge the same: its own need spaCy, and dictionaries of NLTK."""

from typing import Any

from tpullm.corpus.filters import gopher, words


def tokenizer(of: str) -> Any:
    """Our words of a language as one of datatrove's tokenizers: words, and sentences by their marks."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Tokenizer(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return list(words.words_of(text, of))

        def sent_tokenize(self, text: str) -> list[str]:
            return gopher.SENTENCE.findall(text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in gopher.SENTENCE.finditer(text)]

    return Tokenizer()


def fineweb(language: str) -> Any:
    """datatrove's filter of FineWeb with our words and limits."""
    from datatrove.pipeline.filters import FineWebQualityFilter

    limit = gopher.JAPANESE_PAGES if language == "ja" else gopher.FINEWEB
    return FineWebQualityFilter(
        language=tokenizer(language),
        stop_chars=tuple(gopher.sentence_ends(language)),
        line_punct_thr=limit.ends,
        short_line_thr=limit.short,
        short_line_length=gopher.SHORT_LINE,
        char_duplicates_ratio=limit.repeated,
        new_line_ratio=limit.line_ends,
    )
