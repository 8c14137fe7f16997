"""The figures of tasks as a table to read."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

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
