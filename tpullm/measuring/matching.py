"""Whether what a model wrote is a right answer."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_SPACE = re.compile(r"\s+")


def normalized(text: str) -> str:
    """The first line that is not empty, in Unicode's form NFKC (１２ is 12, ｱ is ア), with single spaces."""
    lines = (_SPACE.sub(" ", line).strip() for line in unicodedata.normalize("NFKC", text).splitlines())
    return next(filter(None, lines), "")


def is_exact(said: str, answers: Iterable[str]) -> bool:
    """Whether the answer is one of the right ones."""
    return normalized(said) in map(normalized, answers)


def character_f1(said: str, answers: Iterable[str]) -> float:
    """The F1 of the characters that an answer has in common with the right one that is nearest.

    As SQuAD's of words (Rajpurkar et al. 2016), but of characters, since Japanese has no spaces between words.
    """
    return max((_f1(normalized(said), normalized(answer)) for answer in answers), default=0.0)


def _f1(one: str, other: str) -> float:
    common = (Counter(one) & Counter(other)).total()
    if not one or not other:
        return float(one == other)
    return 2 * common / (len(one) + len(other))
