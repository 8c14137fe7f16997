"""Scores of several models below each other: each with its difference from the first, drawn as an interval around 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpullm.report.html import Markup, phrase, tag
from tpullm.report.language import Language, count, percent

CLASSES = {"better": "better", "worse": "worse"}  # of the words for a difference; others are grey


@dataclass(frozen=True)
class Versus:
    """One figure of all models.

    Args:
        name: what is measured.
        share: the scores are shares, shown in percent, and their differences in points.
        figure: as `results.json` has it.
    """

    name: str
    share: bool
    figure: dict[str, Any]


def versus(text: Language, labels: Sequence[str], figures: Sequence[Versus], one_scale: bool = True) -> Markup:
    """A block for each figure.

    Args:
        one_scale: all differences are drawn on one scale; else, as their units differ, each figure has its own.
    """
    blocks = []
    for each in figures:
        deltas = [delta for of in (figures if one_scale else [each]) for delta in of.figure["deltas"]]
        whole = max(abs(end) for delta in deltas for end in _reach(delta)) or 1.0
        rows = [_row(text, label, each, number, whole) for number, label in enumerate(labels)]
        name = tag("p", tag("b", phrase(each.name)), " ", tag("span", _count(text, each.figure)), class_="name")
        blocks.append(tag("div", name, *rows, class_="versus"))
    return tag("div", *blocks)


def said(text: Language, word: str) -> str:
    """The word for a difference in the language of the page."""
    words = {"better": text("better"), "worse": text("worse"), "can't be told apart": text("can't be told apart")}
    return words.get(word, "")


def _count(text: Language, figure: dict[str, Any]) -> str:
    return text("of {count}", count=count(figure["count"]))


def _row(text: Language, label: str, of: Versus, number: int, whole: float) -> Markup:
    score = of.figure["scores"][number]["value"]
    cells = [
        tag("span", phrase(label), class_="label"),
        tag("b", percent(score) if of.share else written(score), class_="score"),
    ]
    if number:
        delta = of.figure["deltas"][number - 1]
        kind = CLASSES.get(delta["word"], "alike")
        cells.append(tag("span", said(text, delta["word"]), class_=f"word {kind}"))
        cells.append(_track(delta, kind, whole))
        cells.append(tag("span", _by(text, of.share, delta), class_="by"))
    return tag("div", *cells, class_="row")


def _by(text: Language, share: bool, delta: dict[str, Any]) -> str:
    value = text("{points} points", points=f"{100 * delta['value']:+.1f}") if share else written(delta["value"], "+")
    if not delta["interval"]:
        return value
    low, high = (f"{100 * end:+.1f}" if share else written(end, "+") for end in delta["interval"])
    return text("{difference} ({low} to {high})", difference=value, low=low, high=high)


def written(value: float, sign: str = "") -> str:
    """A number with three decimals; a perplexity can have ten digits, and gets four."""
    return f"{value:{sign}.3f}" if abs(value) < 10_000 else f"{value:{sign}.4g}"


def _track(delta: dict[str, Any], kind: str, whole: float) -> Markup:
    """The interval of a difference; 0 is in the middle, and `whole` at the right end."""

    def across(value: float) -> float:
        return (1 + value / whole) / 2

    low, high = (across(end) for end in _reach(delta)[:2])
    interval = tag("i", class_=f"interval {kind}", style=f"left:{low:.2%};width:{high - low:.2%}")
    dot = tag("i", class_=f"dot {kind}", style=f"left:{across(delta['value']):.2%}")
    return tag("div", tag("i", class_="zero"), interval, dot, class_="track", aria_hidden="true")


def _reach(delta: dict[str, Any]) -> list[float]:
    """The ends of the interval, and the difference."""
    return [*(delta["interval"] or [delta["value"]] * 2), delta["value"]]
