"""Which documents are dropped, and for which reason."""

import re

from tpullm.corpus import encodings, repetition
from tpullm.corpus import language_detection as languages
from tpullm.recipe.schema import CorpusConfig

# Limits of code that people write; generated code and tables exceed them: StarCoder (Li et al. 2023, section 3.1).
LONGEST_MEAN_LINE, LONGEST_LINE, LEAST_LETTERS = 100, 1000, 0.25
MOST_BROKEN = 0.001  # share of characters
# A decoder writes U+FFFD for bytes that it cannot read. C1 controls appear where UTF-8 was read as Latin-1.
BROKEN = re.compile("[\ufffd\x80-\x84\x86-\x9f]")


def unreadable(text: str) -> str:
    """Why `text` is not readable (`empty`, `broken encoding`); "" if it is. Every document is checked."""
    if not text.strip():
        return "empty"
    if "\0" in text or encodings.has_surrogate(text):
        return "broken encoding"
    return "broken encoding" if len(BROKEN.findall(text)) > MOST_BROKEN * len(text) else ""


def unwanted(text: str, language: str, config: CorpusConfig) -> str:
    """Why a readable `text` should not be trained on; "" if it should. `language` may be `code` or ""."""
    if len(text.strip()) < config.minimum_characters:
        return "too short"
    if language == "code":
        return "" if _is_written_code(text) else "generated code or data"
    if language and not languages.is_language(text, language):
        return "wrong language"
    return "too repetitive" if repetition.is_repetitive(text) else ""


def _is_written_code(text: str) -> bool:
    lines = text.splitlines()
    letters = sum(map(str.isalpha, text))
    return (
        len(text) / len(lines) <= LONGEST_MEAN_LINE
        and max(map(len, lines)) <= LONGEST_LINE
        and letters >= LEAST_LETTERS * len(text)
    )
