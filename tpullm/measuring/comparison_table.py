"""How models differ, as a table to read."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpullm.measuring.differences import ALIKE
from tpullm.measuring.task_table import RULES

MEASURES = {**RULES, "written": "written answer", "f1": "its characters (F1)"}
LARGE = 10_000  # scores from here on are written with four digits
SHORT = {ALIKE: "can't tell"}  # so that the table fits a terminal of 80 columns

Row = tuple[str, str, str, str]


def show(results: dict[str, Any]) -> None:
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
