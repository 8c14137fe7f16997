"""What is written of the questions of tasks that documents hold: `documents/leaks.jsonl`, and counts for the data card.

A line of the file is a question that a document holds:

    task, question   the name of the task, and the number of the question in it, from 0
    asked, passage   the beginning of the question, and the first words of it that the document holds, folded
    share            of the passages of the question, those that the document holds
    source, file, record, url, hash   of the document
    use              train, held_out, or why the document was dropped
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpullm import storage
from tpullm.corpus import question_windows, tasks
from tpullm.corpus.document import LEAKED
from tpullm.corpus.document_files import BEGINNING, HELD_OUT, MARKS, TRAIN
from tpullm.corpus.question_windows import TaskQuestions
from tpullm.corpus.reduce import Group
from tpullm.corpus.tasks import Task

FILE = "leaks.jsonl"


def write(
    documents: Path,
    planned: Sequence[Task],
    groups: Sequence[Group],
    few: Collection[str],
    all_: Sequence[TaskQuestions],
) -> dict[str, Any]:
    """Write `leaks.jsonl`, and return the counts of each task by its name.

    Args:
        documents: the folder.
        planned: the tasks of collect.
        groups: of their parts, which are marked.
        few: the sources whose documents are cut into stretches, some of which are held out: they count as trained on.
        all_: the questions, in the order of the windows.

    Returns:
        `drop`: whether documents were dropped. `tasks`: of each its `version`; `questions`, and `too_short`, those
        that cannot be looked for; `found`, those in documents that are trained on; `trained_on` and `dropped`,
        documents that hold some.
    """
    found: list[set[int]] = [set() for _ in all_]
    held: list[dict[str, set[str]]] = [{TRAIN: set(), LEAKED: set()} for _ in all_]
    with storage.atomic_file(documents / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for leak in _leaks(planned, groups, few):
            task, use = leak["task"], leak["use"]
            held[task].get(use, set()).add(leak["hash"])
            if use == TRAIN:
                found[task].add(leak["question"])
            asked = all_[task].questions[leak["question"]].texts[0][:BEGINNING]
            file.write(json.dumps(leak | {"task": all_[task].name, "asked": asked}, ensure_ascii=False) + "\n")
    too_short = _too_short(planned, len(all_))
    return {
        "drop": planned[0].config.leaks.drop if planned else False,
        "tasks": {
            task.name: {
                "version": task.version,
                "questions": len(task.questions),
                "too_short": too_short[number],
                "found": len(found[number]),
                "trained_on": len(held[number][TRAIN]),
                "dropped": len(held[number][LEAKED]),
            }
            for number, task in enumerate(all_)
        },
    }


def lines(card: dict[str, Any]) -> list[str]:
    """A line for each task: how much of it the corpus holds.

    Args:
        card: the numbers of the data card.
    """
    return [
        f"{name}: {task['found']:,} of {task['questions']:,} questions are in {task['trained_on']:,} documents to "
        f"train on; {task['dropped']:,} documents were dropped for them, {task['too_short']:,} questions are too short "
        f"to look for; see {FILE}"
        for name, task in card.get("leaks", {}).get("tasks", {}).items()
    ]


def found_in_training(documents: Path, task: str) -> set[int]:
    """The numbers of the questions of a task that documents hold which are trained on."""
    with (documents / FILE).open(encoding="utf-8") as file:
        lines = map(json.loads, file)
        return {line["question"] for line in lines if line["task"] == task and line["use"] == TRAIN}


def _leaks(planned: Sequence[Task], groups: Sequence[Group], few: Collection[str]) -> Iterator[dict[str, Any]]:
    """The leaks of all parts in their order, each with its source and what became of its document."""
    of_parts = {task.part.key: task for task in planned}
    for group in groups:
        summaries = {one.part.key: tasks.summary(of_parts[one.part.key])["leaks"] for one in group.placed}
        if not any(summaries.values()):
            continue
        with group.marks.open("rb") as file:
            marks = np.load(file)
        for one, own in group.split(marks):
            for leak in summaries[one.part.key]:
                row = leak.pop("row")
                yield leak | {"source": one.source.name, "use": _use(row, own, one.source.name in few)}


def _use(row: int, marks: np.ndarray, is_cut: bool) -> str:
    """What became of the document in a row of a part."""
    if row == tasks.DROPPED:
        return LEAKED
    mark = MARKS[marks[row]]
    return TRAIN if is_cut and mark == HELD_OUT else mark


def _too_short(planned: Sequence[Task], count: int) -> list[int]:
    """How many questions of each task have no window."""
    path = next((task.windows for task in planned if task.windows), None)
    totals = question_windows.load(path).totals if path else np.zeros((0, 3), np.int64)
    return np.bincount(totals[totals[:, 2] == 0, 0], minlength=count).tolist()
