"""How likely one of k programs passes, from how many of n did."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tpullm.measuring.intervals import of_mean

KS = (1, 10, 100)  # those of Chen et al. 2021


def pass_at_k(count: int, right: int, k: int) -> float:
    """The unbiased estimate of one problem, 1 - C(n - c, k) / C(n, k), as a product (Chen et al. 2021, section 2.1).

    Args:
        count: n, the programs; at least k.
        right: c, those of them that passed.
    """
    wrong = count - right
    return 1.0 - float(np.prod(1.0 - k / np.arange(wrong + 1, count + 1))) if wrong >= k else 1.0


def figures(right: Sequence[int], count: int) -> dict[str, dict[str, Any]]:
    """For each k of `KS` up to `count`: the mean over problems, its interval, and the number of problems.

    Args:
        right: how many programs of each problem passed.
        count: the programs of each problem.
    """
    found = {}
    for k in KS:
        if k <= count:
            values = np.array([pass_at_k(count, of_one, k) for of_one in right])
            share = {"share": float(values.mean()), "interval": list(of_mean(values)), "count": len(values)}
            found[f"pass@{k}"] = share
    return found
