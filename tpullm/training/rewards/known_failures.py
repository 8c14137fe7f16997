"""What the rewards of a batch say of the training, and the known ways in which learning from rewards fails.

G prompts with S samples each make G groups, and GRPO learns from the differences within a group. `group_signal` gives
the mean, the spread within groups and the share of groups that teach nothing. `KnownFailures` reads these figures in
the log and names each failure once, in one line.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

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


STEPS = 10  # that a failure has to last; the first ones are what later ones are held against
MOST_WITHOUT_SIGNAL = 0.9  # of the groups
MOST_CUT_OFF = 0.5  # of the answers, where their length has doubled
LIKELIHOOD_LOST = 2.0  # nats a token, of the answers under the model that tuning started from
MOST_REPEATED = 0.5  # of the runs of 4 tokens in an answer
LOSS_GAINED = 0.1  # nats a token, on held-out text
SURPRISE = 0.1  # nats a token, by which the sampled tokens differ from what the training expects
REWARD_GAINED = 0.5  # of the spread that the rewards had


class KnownFailures:
    """Looks at the rows of a stage's log, in order, and says what goes wrong, each thing once.

    Args:
        name: of the stage.
        before: the rows that are in its log when it resumes.
    """

    def __init__(self, name: str, before: Sequence[Mapping[str, Any]] = ()):
        self._name, self._rows, self._said = name, [], set()
        self._losses: list[float] = []  # on held-out text, the mean over its sources
        self._surprises: list[float] = []
        for row in before:
            self.found(row)

    def found(self, row: Mapping[str, Any]) -> list[str]:
        """What the row shows that was not said before."""
        if losses := row.get("eval_loss"):
            self._losses.append(sum(losses.values()) / len(losses))
        if "rewards" in row:
            self._rows.append(row)
        if "surprise" in row:
            self._surprises.append(row["surprise"])
        if len(self._rows) < STEPS:
            return []
        lines = []
        for kind, text in (
            ("signal", self._without_signal()),
            ("disagreement", self._disagrees()),
            ("length", self._too_long()),
            ("hacking", self._hacked()),
        ):
            if text and kind not in self._said:
                self._said.add(kind)
                lines.append(f"{self._name}: {text}")
        return lines

    def _mean(self, last: bool, *keys: str) -> float | None:
        """The mean of a figure over the last or the first rows; None where none has it."""
        found = []
        for row in self._rows[-STEPS:] if last else self._rows[:STEPS]:
            value: Any = row
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            found += [] if value is None else [value]
        return sum(found) / len(found) if found else None

    def _without_signal(self) -> str:
        share = self._mean(True, "without_signal", "sum")
        if share < MOST_WITHOUT_SIGNAL:
            return ""
        reward = self._mean(True, "rewards", "sum")
        return (
            f"{share:.0%} of the prompts of the last {STEPS} steps have answers with equal rewards ({reward:.2g} in "
            "the mean), so nothing is learned from them; take prompts that are answered right now and then, a reward "
            "that gives parts, more answers, or a higher temperature"
        )

    def _disagrees(self) -> str:
        last = self._surprises[-STEPS:]
        mean = sum(last) / max(len(last), 1)
        chance = (sum((value - mean) ** 2 for value in last) / max(len(last), 1)) ** 0.5
        if len(last) < STEPS or abs(mean) < max(SURPRISE, chance):
            return ""
        return (
            f"the tokens that were sampled are {mean:+.2f} nats from what training expects of them, so decoding and "
            "training compute something else; train in float32 (train.compute), and report it if that does not help"
        )

    def _too_long(self) -> str:
        first, last, cut_off = (
            self._mean(False, "answer_tokens"),
            self._mean(True, "answer_tokens"),
            self._mean(True, "cut_off"),
        )
        if last < 2 * first or cut_off < MOST_CUT_OFF:
            return ""
        return (
            f"answers grew from {first:.0f} to {last:.0f} tokens, and {cut_off:.0%} are cut off; reward a length "
            "(name: length), or use dr_grpo, whose loss does not favour long answers"
        )

    def _hacked(self) -> str:
        """A reward that rises while what nobody rewards gets worse."""
        first, last = self._mean(False, "rewards", "sum"), self._mean(True, "rewards", "sum")
        spread = self._mean(False, "total_spread")
        if last - first <= REWARD_GAINED * max(spread, 1e-6):
            return ""
        signs = []
        likely, now = self._mean(False, "base_likelihood"), self._mean(True, "base_likelihood")
        if likely is not None and now is not None and likely - now > LIKELIHOOD_LOST:
            signs.append(
                f"the answers became unlikely for the model that tuning started from ({likely:.1f} to {now:.1f} nats a "
                "token)"
            )
        repeated = self._mean(True, "repeated")
        if repeated > MOST_REPEATED > self._mean(False, "repeated"):
            signs.append(f"{repeated:.0%} of an answer repeats itself")
        if self._losses and self._losses[-1] - self._losses[0] > LOSS_GAINED:
            signs.append(f"the loss on held-out text rose from {self._losses[0]:.2f} to {self._losses[-1]:.2f}")
        if not signs:
            return ""
        return (
            f"the reward rose from {first:.2g} to {last:.2g} while {' and '.join(signs)}: the reward may be exploited; "
            "read the answers in metrics.jsonl, and add a reward against it (name: no_repetition) or policy.kl_weight"
        )
