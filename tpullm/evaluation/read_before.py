"""How many of the questions that a model was asked are in the text that it was trained on.

`collect` has looked for them (`corpus.leaks`). Nothing is known of a model that is not a run, or of questions that
`collect` did not look for.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.corpus import datacard
from tpullm.evaluation import harness_tasks, statistics
from tpullm.evaluation.question_task import RULES, WRITTEN, said
from tpullm.evaluation.statistics import of_mean, share
from tpullm.evaluation.tasks import Tasks
from tpullm.system import storage
from tpullm.training.rewards.code_tests import PASSED


def figures(run: Path | None, chosen: Tasks, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each task, by its name, what is known.

    Args:
        run: the run directory of the model; None if it is none.
        chosen: the tasks.
        found: what was measured on each (`evaluate_tasks.measured`).

    Returns:
        `looked_for`: whether `collect` has looked for these questions. If so, `found` of `asked` are in the run's
        training text, and `unread` has the figures of the others by measure, as the task has them: shares of right
        answers, pass@k, or a metric's `value`. It is empty if there are no others.
    """
    card = run / "documents" / "datacard.json" if run else None
    # There is no card if the model was imported, or its text was removed.
    known = storage.read_json(card).get("leaks", {}).get("tasks", {}) if card and card.exists() else {}

    def numbers(name: str, version: str) -> set[int] | None:
        """The numbers of the questions that are in the training text; None if these were not looked for."""
        looked_for = known.get(name, {}).get("version") == version
        return datacard.found_in_training(run / "documents", name) if looked_for else None

    told = {}
    for file in chosen.files:
        if (read := numbers(file.name, file.version)) is not None:
            items = [file.items[number] for number in read]
            texts = {_key(item.text or item.instruction, item.answers) for item in items}
            told[file.name] = _of_questions(texts, found[file.name]["questions"])
    for file in chosen.problems:
        if (read := numbers(file.name, file.version)) is not None:
            names = {file.problems[number].name for number in read}
            told[file.name] = _of_problems(names, found[file.name]["questions"])
    scores, versions = {task: of["scores"] for task, of in found.items() if "scores" in of}, {}
    if known.keys() & scores.keys():
        versions = {task.name: task.version for task in harness_tasks.questions(chosen.names, chosen.index)}
    for task, own in scores.items():
        if (read := numbers(task, versions.get(task, ""))) is not None:
            told[task] = _of_scores(read, own)
    names = [*(file.name for file in (*chosen.files, *chosen.problems)), *scores]
    return {name: {"looked_for": True} | told[name] if name in told else {"looked_for": False} for name in names}


def _key(question: str, answers: Sequence[str]) -> str:
    return json.dumps([question, *answers])


def _of_questions(read: set[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of right answers to the others: by each rule for the likeliest choice, and among written answers."""
    unread = [row for row in rows if _key(row["question"], row["answers"]) not in read]
    right = {measure: [is_right for _, _, is_right in said(unread, measure)] for measure in (WRITTEN, *RULES)}
    shares = {measure: share(own) for measure, own in right.items() if own}
    return {"asked": len(rows), "found": len(rows) - len(unread), "unread": shares}


def _of_problems(read: set[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """pass@k of the other problems; `rows` are the programs."""
    passed = dict.fromkeys((row["problem"] for row in rows), 0)
    for row in rows:
        passed[row["problem"]] += row["verdict"] == PASSED
    unread = [count for name, count in passed.items() if name not in read]
    figures = statistics.figures(unread, len(rows) // len(passed)) if unread else {}
    return {"asked": len(passed), "found": len(passed) - len(unread), "unread": figures}


def _of_scores(read: set[int], scores: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Means of the metrics of a task of the harness; `scores` are those of each question."""
    asked = set().union(*scores.values())
    left = {metric: [value for number, value in own.items() if number not in read] for metric, own in scores.items()}
    unread = {
        metric: {"value": float(np.mean(own)), "count": len(own), "interval": list(of_mean(own))}
        for metric, own in left.items()
        if own
    }
    return {"asked": len(asked), "found": len(asked & read), "unread": unread}
