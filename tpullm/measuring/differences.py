"""How scores of several models on the same questions or documents differ from those of the first model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tpullm.measuring.intervals import Interval, bootstrap, of_mean, paired

# If 5 scores differ, all in one direction, chance alone does that 1 time in 16 (a sign test); if 6 do, 1 time in 32.
LEAST_DIFFERING = 6
BETTER, WORSE, ALIKE = "better", "worse", "can't be told apart"


def figure(
    scores: Sequence[np.ndarray], higher_is_better: bool = True, sizes: np.ndarray | None = None
) -> dict[str, Any]:
    """The mean score of each model, and how far it is from that of the first.

    Args:
        scores: of each model the score of each question, or what it has on each document.
        higher_is_better: a higher score is a better one.
        sizes: what the scores of documents are divided by; None is 1 for each question.

    Returns:
        `count`, `better`: "higher" or "lower", `scores`: of each model its `value` and `interval`, and `deltas`: of
        each but the first its `value` (that of the model minus that of the first), the paired `interval`, how many
        scores `differ`, and a `word`: "better", "worse" or "can't be told apart".
    """
    scores = [np.asarray(each, np.float64) for each in scores]
    total = len(scores[0]) if sizes is None else sizes.sum()
    return {
        "count": len(scores[0]),
        "better": "higher" if higher_is_better else "lower",
        "scores": [{"value": float(each.sum() / total), "interval": list(_alone(each, sizes))} for each in scores],
        "deltas": [_delta(each, scores[0], higher_is_better, sizes) for each in scores[1:]],
    }


def _alone(scores: np.ndarray, sizes: np.ndarray | None) -> Interval:
    """As `evaluate` has it, for questions."""
    return of_mean(scores) if sizes is None else bootstrap(scores, sizes=sizes)


def _delta(own: np.ndarray, first: np.ndarray, higher_is_better: bool, sizes: np.ndarray | None) -> dict[str, Any]:
    total, interval = len(own) if sizes is None else sizes.sum(), paired(own, first, sizes=sizes)
    differ = int(np.count_nonzero(own - first))
    word = ALIKE
    if differ >= LEAST_DIFFERING and not interval.low <= 0 <= interval.high:
        word = BETTER if (interval.low > 0) == higher_is_better else WORSE
    value = float((own - first).sum() / total)
    return {"value": value, "interval": list(interval), "differ": differ, "word": word}


def agreement(right: np.ndarray, first: np.ndarray) -> dict[str, int]:
    """How many questions both answer right, only the first model, only this one, and neither.

    Args:
        right, first: bool `[questions]`, of this model and of the first.
    """
    return {
        "both": int((right & first).sum()),
        "only_first": int((first & ~right).sum()),
        "only_other": int((right & ~first).sum()),
        "neither": int((~right & ~first).sum()),
    }
