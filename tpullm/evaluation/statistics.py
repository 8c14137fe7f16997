"""What scores on some questions say of a model: confidence intervals, calibration, pass@k, differences of models.

Shares have Wilson's interval, other means that of a bootstrap with a fixed seed. Models that answered the same
questions are compared in pairs. Calibration is that of Guo et al. 2017 ("On Calibration of Modern Neural Networks"),
pass@k that of Chen et al. 2021.

A word about a difference needs six scores that differ: of five that all differ one way, a coin does as much 1 time in
16.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

NORMAL_95 = 1.959963984540054  # a normal variable is within as many standard deviations 95 times in 100
DRAWS = 2000  # of a bootstrap; its ends are then within a tenth of the interval's length


Interval = list[float]  # the low and the high end of what holds the truth 95 times in 100


def wilson(right: float, count: int) -> Interval:
    """The interval of a share, of how many of `count` answers were right (Wilson 1927).

    It is inside [0, 1], and good for few questions and for shares near 0 and 1, where the normal one is neither.

    Args:
        right: or the sum of scores from 0 to 1, whose mean varies less than that of scores that are 0 or 1.
    """
    if count == 0:
        return [0.0, 1.0]
    share, squared = right / count, NORMAL_95**2
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    spread = NORMAL_95 / (1 + squared / count) * (share * (1 - share) / count + squared / (4 * count**2)) ** 0.5
    # Of none or all right the ends are 0 and 1; without rounding they would be 7e-18 beside them.
    return [max(0.0, round(middle - spread, 15)), min(1.0, round(middle + spread, 15))]


def bootstrap(values: np.ndarray, seed: int = 0, sizes: np.ndarray | None = None) -> Interval:
    """The interval of a mean: its percentiles over samples of as many values with replacement (Efron 1979).

    Args:
        sizes: of what each value was summed over; the mean is then the sum of the values over that of the sizes.
    """
    if len(values) == 0:
        return [-np.inf, np.inf]
    values = np.asarray(values, np.float64)
    random, means = np.random.default_rng(seed), []
    at_a_time = max(1, (1 << 18) // len(values))  # numbers that stay in a processor's cache
    for first in range(0, DRAWS, at_a_time):
        size = min(at_a_time, DRAWS - first), len(values)
        drawn = random.integers(0, len(values), size, np.int32)
        divided_by = len(values) if sizes is None else sizes[drawn].sum(axis=1)
        means.append(values[drawn].sum(axis=1) / divided_by)
    return np.quantile(np.concatenate(means), [0.025, 0.975]).tolist()


def of_mean(values: np.ndarray) -> Interval:
    """The interval of the mean of scores: Wilson's if each is right or wrong, else that of the bootstrap.

    The bootstrap of scores that are all the same has no length, as if there were no doubt; so Wilson's is theirs too.
    """
    values = np.asarray(values, np.float64)
    different = set(values.tolist())
    if different <= {0.0, 1.0} or (len(different) == 1 and 0 <= values[0] <= 1):
        return wilson(float(values.sum()), len(values))
    return bootstrap(values)


def share_right(right: Sequence[bool]) -> dict[str, Any]:
    """How many answers are `right`, of how many (`count`): the `share` and its `interval`."""
    found, count = sum(right), len(right)
    return {"right": found, "count": count, "share": found / count, "interval": wilson(found, count)}


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
        {"count": int(own.sum()), "probability": float(sure[own].mean()), "share": float(is_right[own].mean())}
        for own in (place == number for number in np.unique(place))
    ]
    error = sum(each["count"] * abs(each["probability"] - each["share"]) for each in bins) / len(sure)
    return {"count": len(sure), "error": error, "bins": bins}


def pass_at_k(count: int, right: int, k: int) -> float:
    """The unbiased estimate of one problem, 1 - C(n - c, k) / C(n, k), as a product (Chen et al. 2021, section 2.1).

    Args:
        count: n, the programs; at least k.
        right: c, those of them that passed.
    """
    wrong = count - right
    return 1.0 - float(np.prod(1.0 - k / np.arange(wrong + 1, count + 1))) if wrong >= k else 1.0


def pass_at_k_figures(right: Sequence[int], count: int) -> dict[str, dict[str, Any]]:
    """For each k of 1, 10 and 100 up to `count`: the mean over problems, its interval, and the number of problems.

    Args:
        right: how many programs of each problem passed.
        count: the programs of each problem.
    """
    found = {}
    for k in (1, 10, 100):  # those of Chen et al. 2021
        if k <= count:
            values = np.array([pass_at_k(count, of_one, k) for of_one in right])
            found[f"pass@{k}"] = {"share": float(values.mean()), "interval": of_mean(values), "count": len(values)}
    return found


# If 5 scores differ, all in one direction, chance alone does that 1 time in 16 (a sign test); if 6 do, 1 time in 32.
LEAST_DIFFERING = 6
BETTER, WORSE, ALIKE = "better", "worse", "can't be told apart"


def compared_means(
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
    first, *others = scores = [np.asarray(each, np.float64) for each in scores]
    total = len(first) if sizes is None else sizes.sum()
    alone, deltas = [], []
    for own in scores:
        interval = of_mean(own) if sizes is None else bootstrap(own, sizes=sizes)
        alone.append({"value": float(own.sum() / total), "interval": interval})
    for own in others:
        # What makes a question hard for both cancels, so this interval is shorter than those of the two say.
        (low, high), differ, word = bootstrap(own - first, sizes=sizes), int(np.count_nonzero(own - first)), ALIKE
        if differ >= LEAST_DIFFERING and not low <= 0 <= high:
            word = BETTER if (low > 0) == higher_is_better else WORSE
        value = float((own - first).sum() / total)
        deltas.append({"value": value, "interval": [low, high], "differ": differ, "word": word})
    better = "higher" if higher_is_better else "lower"
    return {"count": len(first), "better": better, "scores": alone, "deltas": deltas}


def answer_agreement(right: np.ndarray, first: np.ndarray) -> dict[str, int]:
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
