"""Cuts a text that is too long at the end of a line or of a sentence."""

import re

# Places where a text may be cut, best first: a line's end, a sentence's end.
BOUNDARIES = (re.compile(r"\n"), re.compile(r"[。．！？]|[.!?] "))


def cut(text: str, length: int) -> list[str]:
    """Consecutive pieces of `text`, of at most `length` characters each; joined they are `text`.

    A piece ends after a line if there is a line end in it, else after a sentence, else anywhere.
    """
    pieces, start = [], 0
    while len(text) - start > length:
        end = _boundary(text, start, start + length)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _boundary(text: str, start: int, limit: int) -> int:
    """The best place to cut in the second half of `text[start:limit]`, else in its first half, else `limit`."""
    middle = (start + limit) // 2
    for low, high in ((middle, limit), (start, middle)):
        for boundary in BOUNDARIES:
            ends = [match.end() for match in boundary.finditer(text, low, high)]
            if ends:
                return ends[-1]
    return limit
