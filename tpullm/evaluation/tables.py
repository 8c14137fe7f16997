"""The figures of tasks as a table to read.

How models differ, as a table to read.
"""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpullm.evaluation.statistics import ALIKE

RULES = {  # short enough for a table in a terminal of 80 columns
    "likelihood": "likeliest choice",
    "per token": "likeliest per token",
    "per byte": "likeliest per byte",
    "pmi": "likeliest by PMI",
}


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=f"{results['model']['name']} on tasks", title_justify="left")
    for column, justify in (("task", "left"), ("shots", "right"), ("what is measured", "left")):
        table.add_column(column, justify=justify, overflow="fold")
    for column in ("score", "95 %", "of"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, figures in results["tasks"].items():
        shots = figures["settings"]["shots"]
        for number, row in enumerate(rows(figures)):
            table.add_row(*(("", "") if number else (task, str(shots))), *row, end_section=False)
        table.add_section()
    Console(highlight=False).print(table)


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What is measured, the score, its interval and the number of questions, for each figure of a task."""
    for metric, found in figures.get("metrics", {}).items():
        yield metric, f"{found['value']:.4g}", _interval(found["interval"]), str(found["count"])
    for k, found in figures.get("pass_at_k", {}).items():
        yield k, _share(found["share"]), _shares(found["interval"]), str(found["count"])
    for word, count in figures.get("verdicts", {}).items():
        if count:
            yield f"  programs: {word}", str(count), "", str(sum(figures["verdicts"].values()))
    for rule, found in figures.get("likelihood", {}).items():
        yield RULES[rule], _share(found["share"]), _shares(found["interval"]), str(found["count"])
    if "chance" in figures:
        yield "by guessing", _share(figures["chance"]), "", ""
    if written := figures.get("written"):
        count = str(written["count"])
        yield "written answer", _share(written["share"]), _shares(written["interval"]), count
        yield "  its characters (F1)", _share(written["f1"]), _shares(written["f1_interval"]), count
        if written.get("no_choice"):
            yield "  no choice at all", _share(written["no_choice"]), "", count
    yield from _read_before(figures.get("read_before", {}))


def _read_before(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """How many of the questions are in the training text, and the scores of the others if some are."""
    if not found:
        return
    if not found["looked_for"]:
        yield "in its training text", "unknown", "", ""
        return
    yield "in its training text", _share(found["found"] / found["asked"]), "", str(found["asked"])
    for measure, own in found["unread"].items() if found["found"] else ():
        if "value" in own:  # of the harness
            yield f"  {measure}, others", f"{own['value']:.4g}", _interval(own["interval"]), str(own["count"])
            continue
        name = {"written": "written answer", **RULES}.get(measure, measure)
        yield f"  {name}, others", _share(own["share"]), _shares(own["interval"]), str(own["count"])


def _share(share: float) -> str:
    return f"{share:.1%}"


def _shares(interval: list[float]) -> str:
    low, high = interval
    return f"{low:.1%} to {high:.1%}"


def _interval(interval: list[float] | None) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""


MEASURES = {**RULES, "written": "written answer", "f1": "its characters (F1)"}
LARGE = 10_000  # scores from here on are written with four digits
SHORT = {ALIKE: "can't tell"}  # so that the table fits a terminal of 80 columns

Row = tuple[str, str, str, str]


def show_comparison(results: dict[str, Any]) -> None:
    """Print a table of each task and of the texts: each model's scores, and their differences from the first's."""
    labels = [model["label"] for model in results["models"]]
    for heading, figures in _sections(results):
        table = Table(title=escape(heading), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", overflow="fold")
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column(f"minus {escape(labels[0])} (95 %)", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for name, share, figure in figures:
            table.add_row(escape(name))
            for label, *row in _rows(labels, share, figure):
                table.add_row(f"  {escape(label)}", *map(escape, row))
        Console(highlight=False).print(table)


def _sections(results: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, bool, dict[str, Any]]]]]:
    """Of each task and of the texts: the heading, and names and figures, each with whether it is a share."""
    for task, found in results["tasks"].items():
        # The harness's metrics have names of their own, and any range.
        named = [(MEASURES.get(key, key), "share" in figure, figure) for key, figure in found["figures"].items()]
        yield f"{task}, {named[0][2]['count']:,} questions", named
    if texts := results["texts"]:
        places = [(_place(place), False, place["figure"]) for place in texts["by_place"]]
        named = [(text["name"], False, text["figure"]) for text in texts["by_text"]]
        count = f"{texts['all']['count']:,} documents"
        yield f"bits a byte, {count}; fewer are better", [("all texts", False, texts["all"]), *named, *places]


def _place(place: dict[str, Any]) -> str:
    return f"bytes {place['from']:,}-{place['to']:,}" if place["to"] else f"from byte {place['from']:,}"


def _rows(labels: list[str], share: bool, figure: dict[str, Any]) -> Iterator[Row]:
    """Of each model its label, its score, the difference with its interval, and the word for it."""
    # A perplexity can have ten digits.
    large = max(abs(score["value"]) for score in figure["scores"]) >= LARGE
    scale, form = (100, "+.1f") if share else (1, "+.4g" if large else "+.3f")
    for label, score, delta in zip(labels, figure["scores"], [None, *figure["deltas"]], strict=True):
        value = f"{score['value']:.1%}" if share else f"{score['value']:{form[1:]}}"
        if delta is None:
            yield label, value, "", ""
            continue
        ends = " to ".join(f"{scale * end:{form}}" for end in delta["interval"] or ())
        difference = f"{scale * delta['value']:{form}}" + (f" ({ends})" if ends else "")
        word = SHORT.get(delta["word"], delta["word"])
        first = figure["scores"][0]["value"]
        part = f", {delta['value'] / first:+.2%}" if figure["better"] == "lower" and first > 0 else ""  # of a loss
        yield label, value, difference, word + part
