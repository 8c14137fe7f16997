"""How many of the questions that a model was asked are in the text that it was trained on.

`collect` has looked for them (`corpus.leaks`). Nothing is known of a model that is not a run, or of questions that
`collect` did not look for.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.corpus import datacard
from tpullm.evaluation import harness_tasks, statistics
from tpullm.evaluation.programming_task import passed_programs
from tpullm.evaluation.question_task import RULES, WRITTEN, answers_by
from tpullm.evaluation.statistics import of_mean, share_right
from tpullm.evaluation.tasks import Tasks
from tpullm.system import storage


def read_figures(run: Path | None, chosen: Tasks, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each task, by its name, what is known.

    Args:
        run: the run directory of the model; None if it is none.
        chosen: the tasks.
        found: what was measured on each (`evaluate_tasks.measure_tasks`).

    Returns:
        `looked_for`: whether `collect` has looked for these questions. If so, `found` of `asked` are in the run's
        training text, and `unread` has the figures of the others by measure, as the task has them: shares of right
        answers, pass@k, or a metric's `value`. It is empty if there are no others.
    """
    card = run / "documents" / "datacard.json" if run else None
    # There is no card if the model was imported, or its text was removed.
    known = storage.read_json(card).get("leaks", {}).get("tasks", {}) if card and card.exists() else {}

    def told(name: str, version: str, key_of: Callable, entries: list[tuple], score: Callable) -> dict[str, Any]:
        """Of a task: `key_of` a question by its number; `entries`, what was asked by key; `score` of some entries."""
        if known.get(name, {}).get("version") != version:
            return {"looked_for": False}
        read = set(map(key_of, datacard.found_in_training(run / "documents", name)))
        unread = [entry for key, entry in entries if key not in read]
        counts = {"asked": len(entries), "found": len(entries) - len(unread)}
        return {"looked_for": True, **counts, "unread": score(unread) if unread else {}}

    result = {}
    for file in chosen.files:
        keys = [_question_key(item.text or item.instruction, item.answers) for item in file.items]
        entries = [(_question_key(row["question"], row["answers"]), row) for row in found[file.name]["questions"]]
        result[file.name] = told(file.name, file.version, keys.__getitem__, entries, _figures_of_questions)

    def pass_at_k(passed: Sequence[list[bool]]) -> dict[str, Any]:
        return statistics.pass_at_k_figures(list(map(sum, passed)), len(passed[0]))

    for file in chosen.problems:
        keys = [problem.name for problem in file.problems]
        entries = list(passed_programs(found[file.name]["questions"]).items())
        result[file.name] = told(file.name, file.version, keys.__getitem__, entries, pass_at_k)
    scores, versions = {task: of["scores"] for task, of in found.items() if "scores" in of}, {}
    if known.keys() & scores.keys():
        versions = {task.name: task.version for task in harness_tasks.harness_questions(chosen.names, chosen.index)}
    for task, own in scores.items():
        entries = [(number, number) for number in sorted(set().union(*own.values()))]
        result[task] = told(task, versions.get(task, ""), int, entries, partial(_figures_of_harness, own))
    return result


def _question_key(question: str, answers: Sequence[str]) -> str:
    return json.dumps([question, *answers])


def _figures_of_questions(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of right answers: by each rule for the likeliest choice, and among written answers."""
    right = {measure: [is_right for _, _, is_right in answers_by(rows, measure)] for measure in (WRITTEN, *RULES)}
    return {measure: share_right(own) for measure, own in right.items() if own}


def _figures_of_harness(scores: dict[str, dict[int, float]], numbers: Sequence[int]) -> dict[str, Any]:
    """Means of the metrics of a task of the harness over the questions of these numbers."""
    found = {}
    for metric, of_metric in scores.items():
        if own := [of_metric[number] for number in numbers if number in of_metric]:
            found[metric] = {"value": float(np.mean(own)), "count": len(own), "interval": of_mean(own)}
    return found
