"""Whether a text repeats itself: the rules of Gopher (Rae et al. 2021, table A1) on lines and n-grams."""

import numpy as np

from tpullm.corpus import language_detection as languages
from tpullm.corpus import ngrams

# Shares of the characters above which a page is repetitive, by the length of the n-gram in words.
TOP_SHARES = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_SHARES = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
DUPLICATE_LINES, DUPLICATE_LINE_CHARACTERS = 0.30, 0.20
# A Japanese word has about two characters, so n words are 2n characters in scripts without spaces.
CHARACTERS_PER_WORD = 2
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
    repeated = _repeated_lines(lines)
    if len(repeated) > DUPLICATE_LINES * len(lines) and sum(map(len, repeated)) > DUPLICATE_LINE_CHARACTERS * len(text):
        return True
    # The rules are those of datatrove's GopherRepetitionFilter, which finds words by spaCy. For a million characters of
    # Soseki its loops over characters took 6 s (two shared cores), and arrays take 1.5 s.
    codes, lengths = ngrams.units(text)
    scale = CHARACTERS_PER_WORD if languages.is_spaceless(text) else 1
    if len(codes) < LEAST_WORDS * scale:
        return False
    return any(top_characters(codes, lengths, scale * n) > share * len(text) for n, share in TOP_SHARES.items()) or any(
        repeated_characters(codes, lengths, scale * n) > share * len(text) for n, share in DUPLICATE_SHARES.items()
    )


def _repeated_lines(lines: list[str]) -> list[str]:
    """The lines that repeat an earlier line."""
    seen: set[str] = set()
    return [line for line in lines if line in seen or seen.add(line)]


def top_characters(codes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of the most frequent n-gram, times its count; 0 if no n-gram occurs twice."""
    grams, first, counts = np.unique(ngrams.hashes(codes, n), return_index=True, return_counts=True)
    if not len(grams) or counts.max() == 1:
        return 0
    start = first[counts.argmax()]
    return int(counts.max() * lengths[start : start + n].sum())


def repeated_characters(codes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters in n-grams that repeat an earlier n-gram."""
    grams = ngrams.hashes(codes, n)
    repeats = np.ones(len(grams), dtype=bool)
    repeats[np.unique(grams, return_index=True)[1]] = False
    covered = np.zeros(len(codes), dtype=bool)
    for offset in range(n):
        covered[offset : offset + len(grams)] |= repeats
    return int(lengths[covered].sum())
