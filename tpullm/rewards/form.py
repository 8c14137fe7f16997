"""Rewards for the form of an answer: sentences, length, language, repetition, phrases, a pattern, JSON.

Each function here makes a reward from its parameters, and refuses parameters that mean nothing.
"""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import regex

from tpullm.corpus import language_detection
from tpullm.errors import UserError
from tpullm.rewards.scorer import Each, Example
from tpullm.rewards.sentences import sentences
from tpullm.tokenizer.japanese_words import analyser

PATTERN_SECONDS = 1.0  # of the processor for one answer; a pattern that is no trap takes microseconds
UNITS = ("characters", "words", "tokens")


def one_sentence() -> Each:
    """1 for one sentence, 1/n for n."""

    def score(example: Example) -> float:
        count = len(sentences(example.answer))
        return 1 / count if count else 0.0

    return Each(score)


def length(
    least: int = 0, most: int = 0, unit: str = "characters", edge: int = 0, count_tokens: Callable | None = None
) -> Each:
    """1 from `least` to `most` units, then linearly down to 0 at `edge` + 1 units outside."""
    if unit not in UNITS:
        raise UserError(f"unit: {unit} is none of {', '.join(UNITS)}")
    if not 0 <= least <= most or edge < 0:
        raise UserError(f"least {least}, most {most}, edge {edge}: give 0 <= least <= most, and an edge of 0 or more")
    if unit == "tokens" and count_tokens is None:
        raise UserError("unit: tokens needs a tokenizer, and there is none here; use characters or words")
    count = {"characters": count_characters, "words": count_words, "tokens": count_tokens}[unit]

    def score(example: Example) -> float:
        found = count(example.answer)
        return max(0.0, 1 - max(least - found, found - most, 0) / (edge + 1))

    return Each(score)


def count_characters(text: str) -> int:
    """Characters without the space around the text; a composed character (が from か and ゛) is one."""
    return len(unicodedata.normalize("NFC", text.strip()))


def count_words(text: str) -> int:
    """Words between spaces; in Japanese, those of Sudachi's longest units, without marks."""
    if not language_detection.is_spaceless(text):
        return len(text.split())
    return sum(word.part_of_speech()[0] not in ("補助記号", "空白", "記号") for word in analyser("C")(text))


def language(language: str) -> Each:
    """1 if the answer can be in that language, by its script and a model of languages."""
    language_detection.check(language, "language")
    return Each(lambda example: float(language_detection.is_language(example.answer, language)))


def no_repetition(size: int = 8, allowed: float = 0.1) -> Each:
    """1 if at most the share `allowed` of the runs of `size` characters occurred before; then linearly down to 0."""
    if size < 1 or not 0 <= allowed < 1:
        raise UserError(f"size {size}, allowed {allowed}: give a size of at least 1, and 0 <= allowed < 1")

    def score(example: Example) -> float:
        text = " ".join(example.answer.split())
        runs = [text[begin : begin + size] for begin in range(len(text) - size + 1)]
        repeated = 1 - len(set(runs)) / len(runs) if runs else 0.0
        return min(1.0, (1 - repeated) / (1 - allowed))

    return Each(score)


def no_phrases(phrases: list[str]) -> Each:
    """1 if none of the phrases is in the answer, else 0. Case and width (ＡＢＣ, ｱ) do not matter."""
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise UserError("phrases: give at least one, and none that is empty")
    unwanted = [_folded(phrase) for phrase in phrases]
    return Each(lambda example: float(not any(phrase in _folded(example.answer) for phrase in unwanted)))


def mentions(field: str = "mentions") -> Each:
    """The share of the texts of the field (a text, or a list) that are in the answer. Case and width do not matter."""

    def share(example: Example) -> float:
        value = example.field(field)
        wanted = [value] if isinstance(value, str) else value
        if not isinstance(wanted, list) or not wanted or not all(isinstance(text, str) and text for text in wanted):
            raise UserError(f"field `{field}` is no text and no list of texts; give what an answer has to mention")
        return sum(_folded(text) in _folded(example.answer) for text in wanted) / len(wanted)

    return Each(share)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def matches(pattern: str, whole: bool = True) -> Each:
    """1 if the regular expression matches the whole answer without the space around it (`whole`), or a part of it."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"pattern: {pattern} is no regular expression ({error})") from None
    match = compiled.fullmatch if whole else compiled.search
    return Each(lambda example: float(_in_time(pattern, lambda: match(_text(example), timeout=PATTERN_SECONDS))))


def _text(example: Example) -> str:
    return example.answer.strip()


def _in_time(pattern: str, match: Callable[[], Any]) -> bool:
    """Whether it matches. No score depends on a clock, so a pattern that takes too long is an error."""
    try:
        return match() is not None
    except TimeoutError:
        raise UserError(
            f"pattern: {pattern} takes more than {PATTERN_SECONDS:g} s on this answer; "
            "write it without a repetition inside of a repetition, such as (a+)+"
        ) from None


def json_schema(schema: dict) -> Each:
    """1 if the answer, or its one fenced block, is JSON that satisfies the schema (draft 2020-12, unless it says)."""
    from jsonschema import exceptions, validators

    def pattern(validator: Any, wanted: str, instance: Any, schema: dict) -> Any:
        searched = isinstance(instance, str)
        if searched and not _in_time(wanted, lambda: regex.search(wanted, instance, timeout=PATTERN_SECONDS)):
            yield exceptions.ValidationError(f"{instance!r} does not match {wanted!r}")

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise UserError(f"schema: {error.json_path}: {error.message}") from None
    for reference in _references(schema):
        if not str(reference).startswith("#"):
            raise UserError(f"schema: $ref {reference}: only references inside of the schema (#...) are followed")
    validator = validators.extend(kind, {"pattern": pattern})(schema)

    def score(example: Example) -> float:
        try:
            value = json.loads(_unfenced(_text(example)), parse_constant=_refuse)
            return float(validator.is_valid(value))
        except (ValueError, RecursionError):
            return 0.0

    return Each(score)


def _references(schema: Any) -> list:
    """The values of `$ref` and `$dynamicRef` anywhere in a schema."""
    if isinstance(schema, list):
        return [found for part in schema for found in _references(part)]
    if not isinstance(schema, dict):
        return []
    own = [value for key, value in schema.items() if key in ("$ref", "$dynamicRef") and isinstance(value, str)]
    return own + [found for part in schema.values() for found in _references(part)]


def _unfenced(text: str) -> str:
    """What is in the fenced block that is all of `text`, or `text`."""
    block = regex.fullmatch(r"```(?:json)?\s*\n(.*?)\n\s*```", text, regex.DOTALL)
    return block[1] if block else text


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity, which Python's reader would take
