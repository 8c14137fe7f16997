"""Questions with known answers that the model was asked: what was measured, the score, and how sure it is."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tpullm.report.charts import Line, line_chart
from tpullm.report.html import Markup, figure, paragraph, phrase, section, shows, table, tag
from tpullm.report.language import Language, count, percent
from tpullm.report.run_data import RunData, find, number, numbers
from tpullm.run import manifest

Figures = dict[str, Any]
_HEADER_COLUMNS = 2  # of words, before those of numbers


def measured(data: RunData) -> Markup | None:
    """The recipe's own questions and each task, with the scores before and after training."""
    text, by_task = data.language, _by_task(data)
    parts = [*_own_questions(data), *(part for task, asked in by_task.items() for part in _task(data, task, asked))]
    if not parts:
        return None
    said = text(
        "These questions have known answers, so right ones can be counted. The model answers by choosing the likeliest "
        "of the answers that a question offers, or by writing one."
    )
    guess = text("“By guessing” is the score of somebody who knows nothing and chooses at random.")
    sure = text(
        "The last column says how sure a score is: “91 to 99” means that over many other questions of the same "
        "kind, the model would answer 91 to 99 of every 100 right on average. The more questions, the closer the two "
        "numbers."
    )
    return section("measured", text("Questions"), paragraph(text.join(said, guess, sure)), *parts)


def _by_task(data: RunData) -> dict[str, list[tuple[str, str, Figures]]]:
    """Of each task: of which stage, when, and the figures: those of `evaluate --tasks`, else those of the training."""
    text = data.language
    found: dict[str, list[tuple[str, str, Figures]]] = {}
    for stage, rows in {"pretrain": data.pretrain, **data.tuned}.items():
        on_the_way, finished = _on_the_way(rows), bool(data.manifests.get(stage))
        first = on_the_way[0]["tasks"] if on_the_way and on_the_way[0].get("step") == 0 else {}
        last, step = (on_the_way[-1]["tasks"], number(on_the_way[-1], "step")) if on_the_way else ({}, None)
        measured_after = data.measured.get(stage, {})
        for task, figures in {**last, **measured_after}.items():
            asked = found.setdefault(task, [])
            if task in first and not asked:
                asked.append((stage, text("before {stage}", stage=stage), first[task]))
            if finished or task in measured_after:
                asked.append((stage, text("after {stage}", stage=stage), figures))
            elif step:
                asked.append((stage, text("{stage}, step {step}", stage=stage, step=count(step)), figures))
    return found


def _on_the_way(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row.get("tasks"), dict)]


def _own_questions(data: RunData) -> list[Markup]:
    """The held-out questions of a stage of the recipe."""
    text, rows = data.language, []
    whens = {"base": text("before tuning"), "tuned": text("after tuning")}
    for key, when in whens.items():
        share, interval = number(data.results, key, "accuracy"), find(data.results, key, "interval")
        if share is not None and interval:
            rows.append((when, text("by writing"), percent(share), _sure(text, interval)))
    if not rows:
        return []
    kinds = (data.results.get("kinds") or {}).values()
    guesses = [(number(kind, "guess") or 0.0, number(kind, "questions") or 0.0) for kind in kinds]
    asked = sum(questions for _, questions in guesses)
    if asked:
        guess = sum(share * questions for share, questions in guesses) / asked
        rows.append((text("always the commonest answer"), "", percent(guess), ""))
    title = text("{questions} held-out questions", questions=count(number(data.results, "tuned", "questions") or 0))
    return [tag("h3", title), _table(text, rows)]


def _task(data: RunData, task: str, asked: Sequence[tuple[str, str, Figures]]) -> Iterator[Markup]:
    text, (last_stage, _, last) = data.language, asked[-1]
    rows = [(when, *row) for _, when, figures in asked for row in _rows(text, figures)]
    if not rows:
        return
    if (chance := number(last, "chance")) is not None:
        rows.append((text("by guessing"), text("by choosing"), percent(chance), ""))
    yield tag("h3", phrase(task))
    yield _table(text, rows)
    for stage, of_stage in {"pretrain": data.pretrain, **data.tuned}.items():
        yield from _curve(text, stage, task, _on_the_way(of_stage))
    if told := _read_before(text, last):
        yield shows(text, told)
    yield _how(text, task, last_stage, last)


def _table(text: Language, rows: Sequence[Sequence[str]]) -> Markup:
    header = (text("the model"), text("how it answers"), text("right"), text("of 100 such questions"))
    return table(header, rows, left=_HEADER_COLUMNS)


def _rows(text: Language, figures: Figures) -> Iterator[tuple[str, str, str]]:
    """What the model does, the score, and how sure it is."""
    names = {"choice": text("by choosing"), "written": text("by writing")}
    for name, value, interval in _scores(figures):
        is_share = _is_share(figures, name, interval)
        score = percent(value) if is_share else f"{value:.4g}"
        yield names.get(name, name), score, _sure(text, interval) if is_share else ""


def _scores(figures: Figures) -> Iterator[tuple[str, float, Any]]:
    """The name, the value and the interval of each score. Of the rules for a choice it is the likeliest one alone."""
    for name, found in (figures.get("metrics") or {}).items():
        if (value := number(found, "value")) is not None:
            yield name, value, found.get("interval")
    for name, found in (figures.get("pass_at_k") or {}).items():
        if (value := number(found, "share")) is not None:
            yield name, value, found.get("interval")
    for name, found in (("choice", find(figures, "likelihood", "likelihood")), ("written", figures.get("written"))):
        if (value := number(found, "share")) is not None:
            yield name, value, found.get("interval")


def _is_share(figures: Figures, name: str, interval: Sequence[float] | None) -> bool:
    """Whether a score is a share of questions: others, such as a perplexity, have no interval or one of any size, and
    of a loss less is better."""
    is_better = (figures.get("better") or {}).get(name.partition(" (")[0], True)
    return bool(interval) and 0 <= interval[0] <= interval[1] <= 1 and is_better


def _sure(text: Language, interval: Sequence[float]) -> str:
    low, high = interval
    return text("{low} to {high}", low=math.floor(100 * low), high=math.ceil(100 * high))


def _curve(text: Language, stage: str, task: str, rows: Sequence[dict[str, Any]]) -> Iterator[Markup]:
    """The scores of a task against the steps of a stage that measured it on the way."""
    names = {"choice": text("by choosing"), "written": text("by writing")}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value, interval in _scores(row["tasks"].get(task) or {}):
            if _is_share(row["tasks"][task], name, interval) and number(row, "step") is not None:
                points.setdefault(names.get(name, name), []).append((row["step"], value))
    lines = [Line(name, found, n) for n, (name, found) in enumerate(points.items()) if len(found) > 1]
    if lines:
        title = text("Right answers during {stage}", stage=stage)
        yield figure(line_chart(text, title, lines, text("steps of training"), (0.0, 1.0), percent))


def _read_before(text: Language, figures: Figures) -> str:
    """What is known of the questions that the model has read in its training text."""
    found = numbers(figures.get("read_before"))
    if not found.get("asked"):
        return ""
    return text(
        "{found} of {asked} questions are in the training text, so the model may know their answers by heart.",
        found=count(found.get("found", 0)),
        asked=count(found["asked"]),
    )


def _how(text: Language, task: str, stage: str, figures: Figures) -> Markup:
    """How the task was asked, and how to ask it again. It is hidden until the reader opens it."""
    settings = figures.get("settings") or {}
    facts = {
        text("version of the questions"): figures.get("version"),
        text("questions with answers shown before each"): settings.get("shots"),
        text("seed"): settings.get("seed"),
    }
    cells = [
        (tag("dt", name), tag("dd", phrase(str(value)))) for name, value in facts.items() if value not in (None, "")
    ]
    command = manifest.command(task, figures, f"RUN/{stage}") if settings else ""
    parts = [
        tag("dl", *(cell for row in cells for cell in row), class_="facts"),
        *([tag("pre", tag("code", command))] if command else []),
        *([tag("p", text("What the model read:")), tag("pre", figures["prompt"])] if figures.get("prompt") else []),
    ]
    return tag("details", tag("summary", text("How it was asked, and how to repeat it")), *parts)
