"""Splits an answer into sentences, in Japanese and in English."""

import dataclasses
import re
from collections.abc import Iterator

BRACKETS = {"「": "」", "『": "』", "（": "）", "(": ")", "“": "”", "【": "】", "〈": "〉", "《": "》"}
QUOTES = ("「", "『", "“")  # of which the text inside is somebody's words
# A mark of the end. `?` inside of an address (`?a=b`) is none.
_END = re.compile(r"[。｡]+|[！？!?]+(?![A-Za-z0-9])|(?<!\d)．+|\.+(?=\s|$)")
_ITEM = re.compile(r"\s*(?:[-*+・•●○◦▪‣→]|\d{1,3}[.)．）、]\s|[①-⑳]|[(（]\d{1,3}[)）])")
_HEADING = re.compile(r"\s*(?:#{1,6}\s|■|◆|【[^】]*】\s*$)")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st vs e.g i.e etc fig vol jr sr inc ltd a.m p.m u.s cf approx".split())
MASK = "\ue000"  # stands for each character inside of brackets: a character that no text has a meaning for


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
        text: with its mark of the end, without the sign of a list item.
        masked: the same, where brackets and what is in them are `MASK`: as long as `text`.
        ended: whether there is a mark of the end.
        item: whether its line is an item of a list.
        heading: whether its line is a heading.
    """

    text: str
    masked: str
    ended: bool
    item: bool
    heading: bool


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text.

    A sentence ends with 。！？!?, with a period before a space, or with its line. What is in brackets or quotes never
    ends one. Marks, emoji and remarks in round brackets alone are no sentence. Blocks of code are left out.
    """
    return [sentence for line in _lines(text) for sentence in _in_line(line)]


def _lines(text: str) -> Iterator[str]:
    code = False
    for line in text.splitlines():
        if _FENCE.match(line):
            code = not code
        elif not code and line.strip():
            yield line


def _in_line(line: str) -> Iterator[Sentence]:
    heading = _HEADING.match(line) is not None
    item = _ITEM.match(line)
    line = line[item.end() :] if item else line
    masked, begin = mask(line), 0
    ends = [found.end() for found in _END.finditer(masked) if not _abbreviates(masked, found)]
    for end in [*ends, len(line)]:
        part, hidden = line[begin:end], masked[begin:end]
        if _says_something(part, hidden):
            visible = hidden[len(part) - len(part.lstrip()) :].rstrip()
            yield Sentence(part.strip(), visible, end in ends, bool(item), heading)
        begin = end


def mask(line: str) -> str:
    """`line` with `MASK` for each character of brackets that are closed in it, and of what is in them."""
    stack, hidden = [], list(line)
    for place, character in enumerate(line):
        if character in BRACKETS:
            stack.append(place)
        elif stack and character in BRACKETS.values():
            # The nearest open bracket of that kind; those inside that are never closed are characters.
            opened = next((at for at in reversed(stack) if BRACKETS[line[at]] == character), None)
            if opened is not None:
                del stack[stack.index(opened) :]
                hidden[opened : place + 1] = MASK * (place + 1 - opened)
    return "".join(hidden)


def _abbreviates(line: str, found: re.Match) -> bool:
    """Whether a period belongs to an abbreviation or an initial (`Dr. J. Smith`), and more of the line follows."""
    if found[0] != "." or not line[found.end() :].strip():
        return False
    before = re.search(r"[A-Za-z.]+$", line[: found.start()])
    return before is not None and (before[0].lower() in _ABBREVIATIONS or re.fullmatch("[A-Z]", before[0]) is not None)


def _says_something(part: str, masked: str) -> bool:
    """Whether there is a letter or a digit outside of brackets, or a quote; a laugh (笑, www) is none."""
    letters = [character for character in masked if character.isalnum()]
    return not set(letters) <= set("笑wｗ") or not letters and any(quote in part for quote in QUOTES)
