"""Scores an answer to a task of reasoning-gym: what an isolated process runs. It imports the package once."""

from collections.abc import Callable
from typing import Any

import reasoning_gym  # noqa: F401  before the process is confined

from tpullm.data.examples.reasoning_tasks import dataset


def score_reasoning(report: Callable[[float], None], task: dict[str, Any], answer: str) -> None:
    """Report the score of `answer`. The task is made again: not all of what it holds is JSON."""
    index = task.pop("index")
    made = dataset(**task)
    report(float(made.score_answer(answer, made[index])))
