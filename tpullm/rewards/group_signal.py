"""What the rewards of a batch tell: their mean, their spread within groups, and the groups that teach nothing.

S samples of each of G prompts are a group. GRPO learns from the differences within a group.
"""

import dataclasses

import numpy as np

SUM = "sum"  # the name of the weighted sum among the rewards


@dataclasses.dataclass(frozen=True)
class GroupSignal:
    """Figures of one reward.

    Attributes:
        mean: of all samples.
        spread: the standard deviation within groups: the root of the mean of their variances.
        without_signal: the share of groups of which all samples have the same reward.
    """

    mean: float
    spread: float
    without_signal: float


def group_signal(rewards_GS: np.ndarray) -> GroupSignal:
    """The figures of a reward of G groups of S samples, computed in float64."""
    rewards_GS = np.asarray(rewards_GS, np.float64)
    if rewards_GS.ndim != 2 or 0 in rewards_GS.shape:
        raise ValueError(f"rewards of shape {rewards_GS.shape} are not [groups, samples]")
    same_G = rewards_GS.max(axis=1) == rewards_GS.min(axis=1)
    variance_G = np.where(same_G, 0.0, rewards_GS.var(axis=1))  # of equal numbers rounding leaves a little
    return GroupSignal(float(rewards_GS.mean()), float(np.sqrt(variance_G.mean())), float(same_G.mean()))


def group_signals(scores: dict[str, np.ndarray], weights: dict[str, float]) -> dict[str, GroupSignal]:
    """The figures of each reward, `[G, S]` each, and of their weighted sum as `sum`."""
    total_GS = weighted_sum(scores, weights)
    return {name: group_signal(values_GS) for name, values_GS in scores.items()} | {SUM: group_signal(total_GS)}


def weighted_sum(scores: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """The sum of the rewards by their weights, added in their order."""
    return sum(weights[name] * np.asarray(values, np.float64) for name, values in scores.items())
