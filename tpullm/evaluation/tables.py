"""The figures of tasks, and how models differ, as tables to read."""

from collections.abc import Iterator
from typing import Any

from tpullm.evaluation.question_task import RULES, WRITTEN
from tpullm.evaluation.statistics import ALIKE
from tpullm.report.tables import show as show_table

Row = tuple[str, str, str, str]
MEASURES = {**RULES, WRITTEN: "written answer", "f1": "its characters (F1)"}
LARGE = 10_000  # scores from here on are written with four digits
SHORT = {ALIKE: "can't tell"}  # so that the table fits a terminal of 80 columns


def show(results: dict[str, Any]) -> None:
    """Print the figures of each task."""
    cells: list[tuple[str, ...] | None] = []
    for task, figures in results["tasks"].items():
        shots = str(figures["settings"]["shots"])
        cells += [(*(("", "") if number else (task, shots)), *row) for number, row in enumerate(rows(figures))]
        cells.append(None)
    header = ("task", "shots", "what is measured", "score", "95 %", "of")
    title = f"{results['model']['name']} on tasks"
    show_table(title, header, cells, right=(1, 3, 4, 5), folded=(0, 1, 2), lines="all")


def rows(figures: dict[str, Any]) -> Iterator[Row]:
    """What is measured, the score, its interval and the number of questions, for each figure of a task."""
    for name, found in {**figures.get("metrics", {}), **figures.get("pass_at_k", {})}.items():
        yield _score(name, found)
    for word, count in figures.get("verdicts", {}).items():
        if count:
            yield f"  programs: {word}", str(count), "", str(sum(figures["verdicts"].values()))
    for rule, found in figures.get("likelihood", {}).items():
        yield _score(MEASURES[rule], found)
    if "chance" in figures:
        yield "by guessing", f"{figures['chance']:.1%}", "", ""
    if written := figures.get("written"):
        yield _score(MEASURES[WRITTEN], written)
        f1 = {"share": written["f1"], "interval": written["f1_interval"], "count": written["count"]}
        yield _score(f"  {MEASURES['f1']}", f1)
        if written.get("no_choice"):
            yield "  no choice at all", f"{written['no_choice']:.1%}", "", str(written["count"])
    # How many of the questions are in the training text, and the scores of the others if some are.
    if read := figures.get("read_before"):
        share = f"{read['found'] / read['asked']:.1%}" if read["looked_for"] else "unknown"
        yield "in its training text", share, "", str(read["asked"]) if read["looked_for"] else ""
        for measure, own in read["unread"].items() if read.get("found") else ():
            yield _score(f"  {MEASURES.get(measure, measure)}, others", own)


def _score(name: str, found: dict[str, Any]) -> Row:
    """The row of a share of questions, or of a metric of the harness, which may have any range."""
    form, value = (".4g", found["value"]) if "value" in found else (".1%", found["share"])
    interval = " to ".join(f"{end:{form}}" for end in found["interval"] or ())
    return name, f"{value:{form}}", interval, str(found["count"])


def show_comparison(results: dict[str, Any]) -> None:
    """Print a table of each task and of the texts: each model's scores, and their differences from the first's."""
    labels = [model["label"] for model in results["models"]]
    header = ("", "score", f"minus {labels[0]} (95 %)", "")
    for heading, figures in _sections(results):
        cells = []
        for name, share, figure in figures:
            cells += [(name,), *((f"  {label}", *row) for label, *row in _rows(labels, share, figure))]
        show_table(heading, header, cells, right=(1, 2), folded=(0,), lines="head")


def _sections(results: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, bool, dict[str, Any]]]]]:
    """Of each task and of the texts: the heading, and names and figures, each with whether it is a share."""
    for task, found in results["tasks"].items():
        # The harness's metrics have names of their own, and any range.
        named = [(MEASURES.get(key, key), "share" in figure, figure) for key, figure in found["figures"].items()]
        yield f"{task}, {named[0][2]['count']:,} questions", named
    if texts := results["texts"]:
        places = []
        for place in texts["by_place"]:
            start, end = place["from"], place["to"]
            places.append((f"bytes {start:,}-{end:,}" if end else f"from byte {start:,}", False, place["figure"]))
        named = [(text["name"], False, text["figure"]) for text in texts["by_text"]]
        count = f"{texts['all']['count']:,} documents"
        yield f"bits a byte, {count}; fewer are better", [("all texts", False, texts["all"]), *named, *places]


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
