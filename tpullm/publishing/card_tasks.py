"""The part of a model card about tasks: the scores, how sure they are, and what repeats them."""

import json
from collections.abc import Iterator
from typing import Any

from tpullm.run import measurements

Figures = dict[str, Any]


def task_sections(tasks: dict[str, Figures], model: str) -> Iterator[str]:
    """Paragraphs of Markdown; none without tasks.

    Args:
        tasks: the figures of each, as `evaluate --tasks` has them.
        model: the name of the published folder.
    """
    if not tasks:
        return
    rows = [
        f"| {_cell(task)} | {_cell(what)} | {value} | {sure} | {count} |"
        for task, figures in tasks.items()
        for what, value, sure, count in _scores(figures)
    ]
    header = "| task | what the model does | score | 95 % interval | questions |"
    yield "\n".join([header, "| --- | --- | --- | --- | --- |", *rows])
    yield (
        "The interval holds the score on all such questions 95 times in 100. A guess is the score of somebody who "
        "chooses at random."
    )
    for task, figures in tasks.items():
        yield from _repeated(task, figures, model)


def _scores(figures: Figures) -> Iterator[tuple[str, str, str, int | str]]:
    for metric, found in figures.get("metrics", {}).items():
        interval = found["interval"]
        sure = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        yield metric, f"{found['value']:.4g}", sure, found["count"]
    choice = figures.get("likelihood", {}).get("likelihood")
    for what, found in (("chooses the right answer", choice), ("writes the right answer", figures.get("written"))):
        if found:
            low, high = found["interval"]
            yield what, f"{found['share']:.1%}", f"{low:.1%} to {high:.1%}", found["count"]
    for name, found in figures.get("pass_at_k", {}).items():
        low, high = found["interval"]
        yield f"solves the problem ({name})", f"{found['share']:.1%}", f"{low:.1%} to {high:.1%}", found["count"]
    if "chance" in figures:
        yield "a guess chooses it", f"{figures['chance']:.1%}", "", ""


def _repeated(task: str, figures: Figures, model: str) -> Iterator[str]:
    """What repeats the measurement of a task: its version, the command, and what the model read."""
    settings = figures["settings"]
    # A group without --shots has those of its tasks.
    shots = "" if settings["shots"] == "" else f", {settings['shots'] or 0} examples before each question"
    facts = f"Version `{figures['version']}`{shots}"
    facts += f", seed {settings['seed']}" if "seed" in settings else ""
    facts += f", lm-evaluation-harness {settings['harness']}" if "harness" in settings else ""
    yield f"### {_cell(task)}"
    yield f"{facts}. This repeats it:"
    yield f"```sh\n{measurements.command(task, figures, model)}\n```"
    if prompt := figures.get("prompt"):
        yield "The model read, before its first answer:"
        # As a string of JSON in one line, a prompt can end no block of the card.
        yield f"```json\n{json.dumps(prompt, ensure_ascii=False)}\n```"


def _cell(text: str) -> str:
    """A name in a table or a heading of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
