"""How many of the questions that a model was asked are in the text that it was trained on.

`collect` has looked for them (`corpus.leaks`). Nothing is known of a model that is not a run, or
of questions that `collect` did not look for.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.corpus import datacard
from tpullm.evaluation import statistics
from tpullm.evaluation.problem_files import ProblemFile
from tpullm.evaluation.question_files import QuestionFile
from tpullm.evaluation.statistics import of_mean, wilson
from tpullm.system import storage
from tpullm.training.rewards.code_tests import PASSED


def figures(run: Path | None, file: QuestionFile, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a file of questions.

    Args:
        run: the run directory of the model; None if it is none.
        file: the questions.
        rows: what became of each question that was asked (`question_task.measure`).

    Returns:
        `looked_for`: whether `collect` has looked for these questions. If so, `found` of `asked` are in the run's
        training text, and `unread` has by measure the share of right answers to the others, as `question_task` has it;
        it is empty if there are no others.
    """
    numbers = _found(run, file.name, file.version)
    if numbers is None:
        return {"looked_for": False}
    found = {_key(item.text or item.instruction, item.answers) for item in map(file.items.__getitem__, numbers)}
    unread = [row for row in rows if _key(row["question"], row["answers"]) not in found]
    return {
        "looked_for": True,
        "asked": len(rows),
        "found": len(rows) - len(unread),
        "unread": _by_measure(unread) if unread else {},
    }


def of_problems(run: Path | None, file: ProblemFile, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a file of problems of programming, in the form of `figures`; its measures are pass@k.

    Args:
        rows: what became of each program (`programming_task.measure`).
    """
    numbers = _found(run, file.name, file.version)
    if numbers is None:
        return {"looked_for": False}
    found, right = {file.problems[number].name for number in numbers}, {row["problem"]: 0 for row in rows}
    for row in rows:
        right[row["problem"]] += row["verdict"] == PASSED
    unread = [count for name, count in right.items() if name not in found]
    return {
        "looked_for": True,
        "asked": len(right),
        "found": len(right) - len(unread),
        "unread": statistics.figures(unread, len(rows) // len(right)) if unread else {},
    }


def tasks_looked_for(run: Path | None) -> set[str]:
    """The names of the tasks whose questions `collect` has looked for."""
    return set(_card(run).get("leaks", {}).get("tasks", {}))


def of_harness(run: Path | None, task: str, version: str, scores: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The figures of a task of the harness, in the form of `figures`; a measure has its `value` and not a share.

    Args:
        version: of the questions (`harness_tasks.questions`).
        scores: of each metric what each document gave (`harness.measure`).
    """
    numbers = _found(run, task, version)
    if numbers is None:
        return {"looked_for": False}
    asked = set().union(*scores.values())
    left = {metric: [value for number, value in of.items() if number not in numbers] for metric, of in scores.items()}
    unread = {
        metric: {"value": float(np.mean(own)), "count": len(own), "interval": list(of_mean(own))}
        for metric, own in left.items()
        if own
    }
    return {"looked_for": True, "asked": len(asked), "found": len(asked & numbers), "unread": unread}


def _found(run: Path | None, name: str, version: str) -> set[int] | None:
    """The numbers of the questions that are in the training text; None if these were not looked for."""
    known = _card(run).get("leaks", {}).get("tasks", {}).get(name, {})
    return datacard.found_in_training(run / "documents", name) if known.get("version") == version else None


def _card(run: Path | None) -> dict[str, Any]:
    """The data card of a run; empty if it has none: its model was imported, or its text was removed."""
    path = run / "documents" / "datacard.json" if run else None
    return storage.read_json(path) if path and path.exists() else {}


def _key(question: str, answers: Sequence[str]) -> str:
    return json.dumps([question, *answers])


def _by_measure(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of right answers: by each rule for the likeliest choice, and among the written answers."""
    right = {"written": [row["right"] for row in rows]}
    chosen = [row for row in rows if "likeliest" in row]
    for rule in chosen[0]["likeliest"] if chosen else ():
        right[rule] = [row["likeliest"][rule] == row["answers"][0] for row in chosen]
    return {
        measure: {
            "right": sum(own),
            "count": len(own),
            "share": sum(own) / len(own),
            "interval": list(wilson(sum(own), len(own))),
        }
        for measure, own in right.items()
    }
