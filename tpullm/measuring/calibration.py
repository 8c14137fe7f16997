"""Whether a model is as often right as it is sure: probabilities of choices against the share of right ones.

Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10  # of equal width, from 0 to 1


def calibration(probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> dict[str, Any]:
    """The expected calibration error of the likeliest choices, and what it is made of.

    A model that is perfectly calibrated has an error above 0 too: in each bin the share of right answers varies.

    Args:
        probabilities: of each question the probability of each choice.
        right: of each question the number of the right choice.

    Returns:
        `count` of the questions, `error` (mean over questions of how far the mean probability of a bin is from its
        share of right answers), and `bins`: of each that is not empty its `count`, mean `probability` and `share`.
    """
    chosen = np.array([int(np.argmax(each)) for each in probabilities])
    sure = np.array([max(each) for each in probabilities])
    is_right = chosen == np.array(right)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = [
        {
            "count": int((place == number).sum()),
            "probability": float(sure[place == number].mean()),
            "share": float(is_right[place == number].mean()),
        }
        for number in np.unique(place)
    ]
    error = sum(each["count"] * abs(each["probability"] - each["share"]) for each in bins) / len(sure)
    return {"count": len(sure), "error": error, "bins": bins}
