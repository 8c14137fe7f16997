"""Whether a text of any kind repeats itself so often that it teaches nothing: what is looked for in every source.

The rules are those of Gopher (`gopher.py`), in four ways milder, so that they drop no good text that is not prose:
marks are no words (Python's documentation is full of them), a page of few words is not judged, repeated lines must be
many and hold many characters (the names of the speakers in a play are many), and most pages of a book must repeat.
"""

from tpullm.corpus.filters import gopher, words

# Shares of repeated n-grams grow with the length of a text. The limits are for web pages, so a book is cut into pages.
PAGE_CHARACTERS = 10_000
# Shorter pages may repeat an n-gram and still be good text (Gopher drops texts under 50 words before it counts).
LEAST_WORDS = 100


def is_repetitive(text: str) -> bool:
    """Whether most pages of `text` repeat their own lines or n-grams too often."""
    pages = [text[start : start + PAGE_CHARACTERS] for start in range(0, len(text), PAGE_CHARACTERS)]
    return 2 * sum(map(_is_repetitive_page, pages)) > len(pages)


def _is_repetitive_page(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    limit = gopher.ENGLISH
    if all(share > most for share, most in zip(gopher.repeated(lines, text), limit.lines, strict=True)):
        return True
    found = words.of(text)
    hashes_W, lengths_W = found.hashes_W[found.has_text_W], found.lengths_W[found.has_text_W]
    return len(lengths_W) >= LEAST_WORDS and gopher.repeats_phrases(hashes_W, lengths_W, limit, len(text))
