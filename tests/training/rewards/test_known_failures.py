"""The figures of rewards are those of their definitions; each known failure is named once, a healthy training never."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tpullm.training.rewards.known_failures import STEPS, KnownFailures, group_signals

REWARDS = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.sampled_from([0, 0.1, 1 / 3, 1])
)


@given(REWARDS)
def test_the_figures_of_groups_are_those_of_their_definitions(rewards):
    """Of equal numbers rounding leaves no spread."""
    found = group_signals({"a": rewards, "constant": np.full_like(rewards, 0.1)})
    assert found["without_signal"] == {"a": np.mean([len(set(group)) == 1 for group in rewards]), "constant": 1}
    assert found["rewards"]["a"] == pytest.approx(rewards.mean(), abs=1e-12)
    variances = [((group - group.mean()) ** 2).mean() for group in rewards]
    assert found["reward_spread"]["a"] == pytest.approx(np.mean(variances) ** 0.5, abs=1e-7)
    assert found["reward_spread"]["constant"] == 0
    assert (found["reward_spread"]["a"] == 0) == (found["without_signal"]["a"] == 1)


def row(step, **changes):
    """A row of a healthy stage."""
    healthy = {"step": step, "total_spread": 0.2, "answer_tokens": 20.0, "cut_off": 0.1, "repeated": 0.0}
    healthy |= {"rewards": {"sum": 0.2 + 0.01 * step}, "without_signal": {"sum": 0.3}}
    return healthy | {"base_likelihood": -1.0 - 0.02 * step, "surprise": 0.3 * (-1) ** step} | changes


def lines(rows, before=()):
    failures = KnownFailures("rules", before)
    return [line for each in rows for line in failures.found(each)]


def test_a_healthy_stage_is_left_alone():
    assert lines([row(step) for step in range(60)]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda n: {"without_signal": {"sum": 0.95}}, "rules: 95% of the prompts of the last 10 steps"),
        (lambda n: {"answer_tokens": 10.0 + n, "cut_off": n / 40}, "rules: answers grew from 14 to 30 tokens, and 51%"),
        (lambda n: {"base_likelihood": -1.0 - 0.2 * n}, "reward rose from 0.25 to 0.35 while the answers became unlik"),
        (lambda n: {"surprise": 0.3 + n % 2 / 10}, "rules: the tokens that were sampled are +0.35 nats from"),
        (lambda n: {"repeated": n / 40}, "an answer repeats itself: the reward may be exploited"),
    ],
)
def test_each_failure_is_named_once(changes, said):
    (line,) = lines([row(step, **changes(step)) for step in range(60)])
    assert said in line


def test_held_out_text_that_gets_worse_is_a_sign():
    rows = [row(n) | ({"eval_loss": {"a": 2.0 + n / 100, "b": 3.0}} if n % 10 == 0 else {}) for n in range(60)]
    (line,) = lines(rows)
    assert "the loss on held-out text rose from 2.50 to 2.6" in line
    assert lines([each | {"rewards": {"sum": 0.2}} for each in rows]) == []  # nothing is gained by it
    # The last loss is held against the first: 0.12 nats in two halves, each of which alone is too little to be said.
    losses = {0: 2.50, 20: 2.56, 40: 2.62}
    rows = [row(n) | ({"eval_loss": {"a": losses[n]}} if n in losses else {}) for n in range(60)]
    assert lines(rows[:40]) == []
    assert "rose from 2.50 to 2.62" in lines(rows)[0]


def test_nothing_is_said_of_a_mean_that_may_be_chance_and_of_few_steps():
    """0.15 nats, of steps that are 0.2 away from each other's mean."""
    assert lines([row(step, surprise=0.15 + 0.2 * (-1) ** step) for step in range(60)]) == []
    assert lines([row(step, surprise=0.15 + 0.1 * (-1) ** step) for step in range(60)]) != []
    assert lines([row(step, without_signal={"sum": 1.0}) for step in range(STEPS - 1)]) == []


def test_resumed_it_goes_on_and_repeats_nothing():
    rows = [row(step, without_signal={"sum": 1.0}) for step in range(30)]
    assert lines(rows[15:], before=rows[:15]) == []
    assert len(lines(rows[5:], before=rows[:5])) == 1
