"""Intervals of confidence: what a score on some questions says of the score on all such questions."""

from typing import NamedTuple

import numpy as np

NORMAL_95 = 1.959963984540054  # a normal variable is within as many standard deviations 95 times in 100
DRAWS = 2000  # of a bootstrap; its ends are then within a tenth of the interval's length
NUMBERS = 1 << 18  # that are drawn at a time: they stay in a processor's cache


class Interval(NamedTuple):
    """The ends of an interval that holds the truth 95 times in 100."""

    low: float
    high: float


def wilson(right: float, count: int) -> Interval:
    """The interval of a share, of how many of `count` answers were right (Wilson 1927).

    It is inside [0, 1], and good for few questions and for shares near 0 and 1, where the normal one is neither.

    Args:
        right: or the sum of scores from 0 to 1, whose mean varies less than that of scores that are 0 or 1.
    """
    if count == 0:
        return Interval(0.0, 1.0)
    share, squared = right / count, NORMAL_95**2
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    spread = NORMAL_95 / (1 + squared / count) * (share * (1 - share) / count + squared / (4 * count**2)) ** 0.5
    return Interval(max(0.0, middle - spread), min(1.0, middle + spread))


def bootstrap(values: np.ndarray, seed: int = 0, sizes: np.ndarray | None = None) -> Interval:
    """The interval of a mean: its percentiles over samples of as many values with replacement (Efron 1979).

    Args:
        sizes: of what each value was summed over; the mean is then the sum of the values over that of the sizes.
    """
    if len(values) == 0:
        return Interval(-np.inf, np.inf)
    values = np.asarray(values, np.float64)
    random, means = np.random.default_rng(seed), []
    at_a_time = max(1, NUMBERS // len(values))
    for first in range(0, DRAWS, at_a_time):
        size = min(at_a_time, DRAWS - first), len(values)
        drawn = random.integers(0, len(values), size, np.int32)
        divided_by = len(values) if sizes is None else sizes[drawn].sum(axis=1)
        means.append(values[drawn].sum(axis=1) / divided_by)
    return Interval(*np.quantile(np.concatenate(means), [0.025, 0.975]).tolist())


def of_mean(values: np.ndarray) -> Interval:
    """The interval of the mean of scores: Wilson's if each is right or wrong, else that of the bootstrap.

    The bootstrap of scores that are all the same has no length, as if there were no doubt; so Wilson's is theirs too.
    """
    values = np.asarray(values, np.float64)
    different = set(values.tolist())
    if different <= {0.0, 1.0} or (len(different) == 1 and 0 <= values[0] <= 1):
        return wilson(float(values.sum()), len(values))
    return bootstrap(values)


def paired(one: np.ndarray, other: np.ndarray, seed: int = 0, sizes: np.ndarray | None = None) -> Interval:
    """The interval of how much higher the mean of `one` is, of two models that answered the same questions.

    What makes a question hard for both cancels, so it is shorter than the intervals of the two say.

    Args:
        one, other: the score of each question, in the same order.
        sizes: as in `bootstrap`.
    """
    return bootstrap(np.asarray(one, np.float64) - np.asarray(other, np.float64), seed, sizes)
