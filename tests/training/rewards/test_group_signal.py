"""The figures of a batch of rewards are those of their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tpullm.training.rewards.known_failures import GroupSignal, group_signal, group_signals, weighted_sum

REWARDS = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.sampled_from([0, 0.1, 1 / 3, 1])
)


def test_two_groups():
    assert group_signal(np.array([[0, 1, 0, 1], [0.5] * 4])) == GroupSignal(0.5, float(np.sqrt(0.25 / 2)), 0.5)


@given(REWARDS)
def test_as_defined(rewards):
    found = group_signal(rewards)
    groups = [list(group) for group in rewards]
    assert found.without_signal == sum(len(set(group)) == 1 for group in groups) / len(groups)
    means = [sum(group) / len(group) for group in groups]
    variances = [
        sum((value - mean) ** 2 for value in group) / len(group) for group, mean in zip(groups, means, strict=True)
    ]
    assert found.mean == pytest.approx(sum(means) / len(groups), abs=1e-12)
    assert found.spread == pytest.approx((sum(variances) / len(groups)) ** 0.5, abs=1e-7)
    assert (found.spread == 0) == (found.without_signal == 1)


@given(REWARDS, st.floats(-2, 2))
def test_a_constant_beside_a_reward_changes_the_mean_only(rewards, weight):
    scores = {"a": rewards, "constant": np.full_like(rewards, 0.1)}
    weights = {"a": 1.0, "constant": weight}
    found = group_signals(scores, weights)
    assert list(found) == ["a", "constant", "sum"] and found["a"] == group_signal(rewards)
    assert found["constant"].without_signal == 1 and found["constant"].spread == 0
    assert found["sum"].mean == pytest.approx(found["a"].mean + 0.1 * weight, abs=1e-12)
    assert found["sum"].without_signal == found["a"].without_signal
    assert (weighted_sum(scores, weights) == rewards + weight * scores["constant"]).all()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (1, 2, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="are not .groups, samples."):
        group_signal(np.zeros(shape))
