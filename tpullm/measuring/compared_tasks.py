"""The answers of several models to one task: scores and their differences, examples, calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tpullm.measuring.calibration import calibration
from tpullm.measuring.differences import agreement, figure
from tpullm.measuring.matching import character_f1
from tpullm.measuring.question_task import RULES
from tpullm.rewards.code_tests import PASSED

SHARE = {"share": True}  # a figure from 0 to 1, which is written in percent
EXAMPLES = 3  # of each kind that are shown
SHOWN = ("written", "likelihood")  # the measures of which examples are shown


def task(given: Sequence[dict[str, Any]], labels: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of a task.

    Args:
        given: by model, as `evaluate_tasks.measured` has it.
        labels: of the models.
        seed: chooses the examples.

    Returns:
        `version`, `settings` and `prompt`, which repeat it; `figures`, by measure (see `differences.figure`), with the
        `agreement` of each model with the first where answers are right or wrong. Of a file of questions also
        `examples`, on which models differ; and if there are choices, `chance` and the `calibration` of each model.
    """
    first = given[0]
    found = {key: first[key] for key in ("version", "settings", "prompt", "chance") if key in first}
    if all("read_before" in own for own in given):  # a group of tasks has none
        found["read_before"] = [own["read_before"] for own in given]
    if "questions" not in first:
        return found | {"figures": _of_harness(given)}
    rows = [own["questions"] for own in given]
    if "pass_at_k" in first:
        scores = [_passed(of_model) for of_model in rows]
        return found | {"figures": {"pass@1": figure(scores) | _agreements(scores) | SHARE}}
    found["figures"] = {measure: each | SHARE for measure, each in _of_file(rows).items()}
    found["examples"] = [
        examples
        for number, label in enumerate(labels[1:], 1)
        for measure in SHOWN
        if measure in found["figures"]
        for examples in _examples(rows[0], rows[number], label, measure, seed)
    ]
    if "probabilities" in first:
        right = [row["choices"].index(row["answers"][0]) for row in rows[0] if "choices" in row]
        found["calibration"] = [calibration(own["probabilities"], right) for own in given]
    return found


def _of_harness(given: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    figures = {}
    for metric, of_first in given[0]["metrics"].items():
        higher = given[0].get("better", {}).get(metric.partition(" (")[0], True)
        if all(metric in own.get("scores", {}) for own in given):
            scores = [np.array(list(own["scores"][metric].values())) for own in given]
            figures[metric] = figure(scores, higher) | _agreements(scores)
            continue
        values = [own["metrics"][metric]["value"] for own in given]  # no mean over questions: no interval is known
        figures[metric] = {
            "count": of_first["count"],
            "better": "higher" if higher else "lower",
            "scores": [{"value": value, "interval": None} for value in values],
            "deltas": [{"value": value - values[0], "interval": None, "word": ""} for value in values[1:]],
        }
    return figures


def _of_file(rows: Sequence[list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The figures of a file of questions: by each rule for the likeliest choice, and of what was written."""
    figures = {}
    for measure in (*RULES, "written"):
        if _asked(rows[0], measure):
            scores = [np.array(_right(of_model, measure), np.float64) for of_model in rows]
            figures[measure] = figure(scores) | _agreements(scores)
    f1 = [np.array([character_f1(row["written"], row["answers"]) for row in of_model]) for of_model in rows]
    return figures | {"f1": figure(f1)}


def _passed(rows: list[dict[str, Any]]) -> np.ndarray:
    """Of each problem of programming the share of its programs that pass."""
    verdicts: dict[str, list[bool]] = {}
    for row in rows:
        verdicts.setdefault(row["problem"], []).append(row["verdict"] == PASSED)
    return np.array([np.mean(of_problem) for of_problem in verdicts.values()])


def _asked(rows: list[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """The questions that a measure is of."""
    return rows if measure == "written" else [row for row in rows if "likeliest" in row]


def _right(rows: list[dict[str, Any]], measure: str) -> list[bool]:
    if measure == "written":
        return [row["right"] for row in rows]
    return [row["likeliest"][measure] == row["answers"][0] for row in _asked(rows, measure)]


def _agreements(scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """With the first model; nothing if scores are not right or wrong."""
    if not all(np.isin(own, (0, 1)).all() for own in scores):
        return {}
    return {"agreement": [agreement(own == 1, scores[0] == 1) for own in scores[1:]]}


def _examples(
    first: list[dict[str, Any]], other: list[dict[str, Any]], label: str, measure: str, seed: int
) -> list[dict[str, Any]]:
    """Questions that one of two models answers right and the other wrong: how many, and some, drawn by the seed."""
    asked = list(zip(_asked(first, measure), _asked(other, measure), strict=True))
    right = np.array(_right(first, measure)), np.array(_right(other, measure))
    found = []
    for kind, differs in (("only_first", right[0] & ~right[1]), ("only_other", right[1] & ~right[0])):
        places = np.flatnonzero(differs)
        drawn = np.sort(np.random.default_rng(seed).permutation(places)[:EXAMPLES]).tolist()
        shown = [
            {"question": one["question"], "answers": one["answers"]}
            | {"said": [_said(one, measure), _said(two, measure)]}
            for one, two in map(asked.__getitem__, drawn)
        ]
        found.append({"model": label, "measure": measure, "kind": kind, "count": len(places), "shown": shown})
    return found


def _said(row: dict[str, Any], measure: str) -> str:
    return row["written"] if measure == "written" else row["likeliest"][measure]
