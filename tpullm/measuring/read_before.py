"""How many of the questions that a model was asked are in the text that it was trained on.

`collect` has looked for them (`corpus.leaks`). Of a model that is no run, or of questions that were not looked for,
nothing is known.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.corpus import leak_records
from tpullm.measuring.intervals import wilson
from tpullm.measuring.question_files import QuestionFile


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
    card = _card(run)
    known = card.get("leaks", {}).get("tasks", {}).get(file.name, {})
    if known.get("version") != file.version:
        return {"looked_for": False}
    numbers = leak_records.found_in_training(run / "documents", file.name)
    found = {_key(item.text or item.instruction, item.answers) for item in map(file.items.__getitem__, numbers)}
    unread = [row for row in rows if _key(row["question"], row["answers"]) not in found]
    return {
        "looked_for": True,
        "asked": len(rows),
        "found": len(rows) - len(unread),
        "unread": _by_measure(unread) if unread else {},
    }


def _card(run: Path | None) -> dict[str, Any]:
    """The data card of a run; empty if it has none: its model was imported, or its text was removed."""
    path = run / "documents" / "datacard.json" if run else None
    return storage.read_json(path) if path and path.exists() else {}


def _key(question: str, answers: Sequence[str]) -> str:
    return json.dumps([question, *answers])


def _by_measure(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of right answers by each rule for the likeliest choice, and of those that were written."""
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
