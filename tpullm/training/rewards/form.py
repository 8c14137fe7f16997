"""Rewards for the form of an answer: sentences, length, language, repetition, phrases, a pattern, JSON.

Each public function that returns an `Each` makes a reward from its parameters, and refuses parameters that mean
nothing. `sentences` splits Japanese and English text.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import regex

from tpullm.corpus import language_detection
from tpullm.system.errors import UserError
from tpullm.tokenizer.japanese_words import analyser
from tpullm.training.rewards.scorer import Each, Example

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
    found, code = [], False
    for line in text.splitlines():
        fence, heading, item = _FENCE.match(line), _HEADING.match(line) is not None, _ITEM.match(line)
        code ^= bool(fence)
        if fence or code or not line.strip():
            continue
        line = line[item.end() :] if item else line
        masked, begin = mask_brackets(line), 0
        ends = [mark.end() for mark in _END.finditer(masked) if not _abbreviates(masked, mark)]
        for end in [*ends, len(line)]:
            part, hidden = line[begin:end], masked[begin:end]
            letters = [character for character in hidden if character.isalnum()]
            # A laugh (笑, www) says nothing; a quote alone does.
            if not set(letters) <= set("笑wｗ") or not letters and any(quote in part for quote in QUOTES):
                visible = hidden[len(part) - len(part.lstrip()) :].rstrip()
                found.append(Sentence(part.strip(), visible, end in ends, bool(item), heading))
            begin = end
    return found


def mask_brackets(line: str) -> str:
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


MARKS = ("補助記号", "空白", "記号")  # parts of speech that are no words
PATTERN_SECONDS = 1.0  # of the processor for one answer; a pattern that is no trap takes microseconds


def one_sentence() -> Each:
    """1 for one sentence, 1/n for n."""
    return Each(lambda example: 1 / count if (count := len(sentences(example.answer))) else 0.0)


def length(
    least: int = 0, most: int = 0, unit: str = "characters", edge: int = 0, count_tokens: Callable | None = None
) -> Each:
    """1 from `least` to `most` units, then linearly down to 0 at `edge` + 1 units outside."""
    counts = {"characters": count_characters, "words": count_words, "tokens": count_tokens}
    if unit not in counts:
        raise UserError(f"unit: {unit} is none of {', '.join(counts)}")
    if not 0 <= least <= most or edge < 0:
        raise UserError(f"least {least}, most {most}, edge {edge}: give 0 <= least <= most, and an edge of 0 or more")
    if unit == "tokens" and count_tokens is None:
        raise UserError("unit: tokens needs a tokenizer, and there is none here; use characters or words")

    def score(example: Example) -> float:
        found = counts[unit](example.answer)
        return max(0.0, 1 - max(least - found, found - most, 0) / (edge + 1))

    return Each(score)


def count_characters(text: str) -> int:
    """Characters without the space around the text; a composed character (が from か and ゛) is one."""
    return len(unicodedata.normalize("NFC", text.strip()))


def count_words(text: str) -> int:
    """Words between spaces; in Japanese, those of Sudachi's longest units, without marks."""
    if not language_detection.is_spaceless(text):
        return len(text.split())
    return sum(word.part_of_speech()[0] not in MARKS for word in analyser("C")(text))


def language(language: str) -> Each:
    """1 if the answer can be in that language, by its script and a model of languages."""
    language_detection.check(language, "language")
    return Each(lambda example: float(language_detection.is_language(example.answer, language)))


def no_repetition(size: int = 8, allowed: float = 0.1) -> Each:
    """1 if at most the share `allowed` of the runs of `size` characters occurred before; then linearly down to 0."""
    if size < 1 or not 0 <= allowed < 1:
        raise UserError(f"size {size}, allowed {allowed}: give a size of at least 1, and 0 <= allowed < 1")
    share = lambda answer: repeated_share(" ".join(answer.split()), size)  # noqa: E731
    return Each(lambda example: min(1.0, (1 - share(example.answer)) / (1 - allowed)))


def repeated_share(items: Sequence, size: int) -> float:
    """The share of the runs of `size` characters, or tokens, that stood before."""
    runs = [items[begin : begin + size] for begin in range(len(items) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def no_phrases(phrases: list[str]) -> Each:
    """1 if none of the phrases is in the answer, else 0. Case and width (ＡＢＣ, ｱ) do not matter."""
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise UserError("phrases: give at least one, and none that is empty")
    unwanted = [_folded_text(phrase) for phrase in phrases]
    return Each(lambda example: float(not any(phrase in _folded_text(example.answer) for phrase in unwanted)))


def mentions(field: str = "mentions") -> Each:
    """The share of the texts of the field (a text, or a list) that are in the answer. Case and width do not matter."""

    def share(example: Example) -> float:
        value = example.field(field)
        wanted = [value] if isinstance(value, str) else value
        if not isinstance(wanted, list) or not wanted or not all(isinstance(text, str) and text for text in wanted):
            raise UserError(f"field `{field}` is no text and no list of texts; give what an answer has to mention")
        return sum(_folded_text(text) in _folded_text(example.answer) for text in wanted) / len(wanted)

    return Each(share)


def _folded_text(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def matches(pattern: str, whole: bool = True) -> Each:
    """1 if the regular expression matches the whole answer without the space around it (`whole`), or a part of it."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"pattern: {pattern} is no regular expression ({error})") from None
    match = compiled.fullmatch if whole else compiled.search
    return Each(lambda example: float(_matches_in_time(pattern, match, example.answer.strip())))


def _matches_in_time(pattern: str, match: Callable[..., Any], text: str) -> bool:
    """Whether it matches. No score depends on a clock, so a pattern that takes too long is an error."""
    try:
        return match(text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"pattern: {pattern} takes more than {PATTERN_SECONDS:g} s on this answer; "
            "write it without a repetition inside of a repetition, such as (a+)+"
        ) from None


def json_schema(schema: dict) -> Each:
    """1 if the answer, or its one fenced block, is JSON that satisfies the schema (draft 2020-12, unless it says)."""
    from jsonschema import exceptions, validators

    def pattern(validator: Any, wanted: str, instance: Any, schema: dict) -> Any:
        if isinstance(instance, str) and not _matches_in_time(wanted, partial(regex.search, wanted), instance):
            yield exceptions.ValidationError(f"{instance!r} does not match {wanted!r}")

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise UserError(f"schema: {error.json_path}: {error.message}") from None
    for reference in _schema_references(schema):
        if not str(reference).startswith("#"):
            raise UserError(f"schema: $ref {reference}: only references inside of the schema (#...) are followed")
    validator = validators.extend(kind, {"pattern": pattern})(schema)

    def score(example: Example) -> float:
        try:
            block = regex.fullmatch(r"```(?:json)?\s*\n(.*?)\n\s*```", example.answer.strip(), regex.DOTALL)
            # NaN and Infinity, which Python's reader would take, are not JSON: `int` raises ValueError of them.
            value = json.loads(block[1] if block else example.answer.strip(), parse_constant=int)
            return float(validator.is_valid(value))
        except (ValueError, RecursionError):
            return 0.0

    return Each(score)


def _schema_references(schema: Any) -> list:
    """The values of `$ref` and `$dynamicRef` anywhere in a schema."""
    if isinstance(schema, list):
        return [found for part in schema for found in _schema_references(part)]
    if not isinstance(schema, dict):
        return []
    own = [value for key, value in schema.items() if key in ("$ref", "$dynamicRef") and isinstance(value, str)]
    return own + [found for part in schema.values() for found in _schema_references(part)]
