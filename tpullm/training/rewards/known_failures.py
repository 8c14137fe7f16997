"""What the rewards of a batch say of the training, and the known ways in which learning from rewards fails.

G prompts with S samples each make G groups, and GRPO learns from the differences within a group. `group_signals` gives
the mean, the spread within groups and the share of groups that teach nothing. `KnownFailures` reads these figures in
the log and names each failure once, in one line.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tpullm.training.metrics import numbers_of_row

SUM = "sum"  # the name of the weighted sum among the rewards


def group_signals(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Figures of each reward of G groups of S samples, `[G, S]` float64.

    `rewards`: the mean of all samples. `reward_spread`: the standard deviation within groups, the root of the mean of
    their variances. `without_signal`: the share of groups of which all samples have the same reward.
    """
    found: dict[str, dict[str, float]] = {"rewards": {}, "reward_spread": {}, "without_signal": {}}
    for name, rewards_GS in scores.items():
        same_G = rewards_GS.max(axis=1) == rewards_GS.min(axis=1)
        variance_G = np.where(same_G, 0.0, rewards_GS.var(axis=1))  # of equal numbers rounding leaves a little
        found["rewards"][name] = float(rewards_GS.mean())
        found["reward_spread"][name] = float(np.sqrt(variance_G.mean()))
        found["without_signal"][name] = float(same_G.mean())
    return found


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
        self._surprises, self._losses = [], []  # the losses are those on held-out text, the mean over its sources
        for row in before:
            self.found(row)

    def found(self, row: Mapping[str, Any]) -> list[str]:
        """What the row shows that was not said before."""
        if losses := row.get("eval_loss"):
            self._losses.append(sum(losses.values()) / len(losses))
        if "rewards" in row:
            self._rows.append(numbers_of_row(row))
        if "surprise" in row:
            self._surprises.append(row["surprise"])
        if len(self._rows) < STEPS:
            return []
        first, last = _mean_figures(self._rows[:STEPS]), _mean_figures(self._rows[-STEPS:])
        told = dict(_failures(first, last, self._surprises[-STEPS:], self._losses))
        new = [f"{self._name}: {text}" for kind, text in told.items() if kind not in self._said]
        self._said |= told.keys()
        return new


def _mean_figures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the rows that have it."""
    columns = {name: [row[name] for row in rows if name in row] for row in rows for name in row}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _failures(
    first: Mapping[str, float], last: Mapping[str, float], surprises: Sequence[float], losses: Sequence[float]
) -> Iterator[tuple[str, str]]:
    """What the means of the first and of the last steps show, each kind of failure with its line.

    Args:
        surprises: of the last steps.
        losses: on held-out text, from the first one on.
    """
    before, now = first["rewards/sum"], last["rewards/sum"]
    if (share := last["without_signal/sum"]) >= MOST_WITHOUT_SIGNAL:
        yield (
            "signal",
            f"{share:.0%} of the prompts of the last {STEPS} steps have answers with equal rewards ({now:.2g} in the "
            "mean), so nothing is learned from them; take prompts that are answered right now and then, a reward that "
            "gives parts, more answers, or a higher temperature",
        )
    if len(surprises) == STEPS and abs(mean := np.mean(surprises)) >= max(SURPRISE, np.std(surprises)):
        yield (
            "disagreement",
            f"the tokens that were sampled are {mean:+.2f} nats from what training expects of them, so decoding and "
            "training compute something else; train in float32 (train.compute), and report it if that does not help",
        )
    short, long = first["answer_tokens"], last["answer_tokens"]
    if long >= 2 * short and last["cut_off"] >= MOST_CUT_OFF:
        yield (
            "length",
            f"answers grew from {short:.0f} to {long:.0f} tokens, and {last['cut_off']:.0%} are cut off; reward a "
            "length (name: length), or use dr_grpo, whose loss does not favour long answers",
        )
    signs = []  # of a reward that rises while what nobody rewards gets worse
    likely, less = (means.get("base_likelihood", 0.0) for means in (first, last))  # without an adapter there is none
    if likely - less > LIKELIHOOD_LOST:
        nats = f"({likely:.1f} to {less:.1f} nats a token)"
        signs.append(f"the answers became unlikely for the model that tuning started from {nats}")
    if last["repeated"] > MOST_REPEATED > first["repeated"]:
        signs.append(f"{last['repeated']:.0%} of an answer repeats itself")
    if losses and losses[-1] - losses[0] > LOSS_GAINED:
        signs.append(f"the loss on held-out text rose from {losses[0]:.2f} to {losses[-1]:.2f}")
    if signs and now - before > REWARD_GAINED * max(first["total_spread"], 1e-6):
        yield (
            "hacking",
            f"the reward rose from {before:.2g} to {now:.2g} while {' and '.join(signs)}: the reward may be exploited; "
            "read the answers in metrics.jsonl, and add a reward against it (name: no_repetition) or policy.kl_weight",
        )
