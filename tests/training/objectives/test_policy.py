"""What is true of objectives of rewards, whatever the numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.training.small import means
from tpullm.recipe.schema import PolicyConfig
from tpullm.training.objectives.policy import METHODS, policy_loss

B, T, S = 4, 12, 3
SEEDS = st.integers(0, 2**32 - 1)


def rollout(seed):
    """Log-probabilities, those of sampling, advantages, and up to three answers in a row with other tokens between."""
    random = np.random.default_rng(seed)
    answers = np.zeros((B, T), np.int32)
    for row in range(B):
        cuts = np.sort(random.choice(np.arange(1, T), 2, replace=False))
        answers[row] = 1 + (np.arange(T)[:, None] >= cuts).sum(1)
    answers *= random.random((B, T)) > 0.25
    of_answers = random.normal(size=(B, S + 1))
    advantages = np.take_along_axis(of_answers, answers, axis=1).astype(np.float32)
    logp = -random.exponential(1, (B, T)).astype(np.float32)
    old = (logp + random.normal(0, 0.3, (B, T))).astype(np.float32)
    return logp, old, advantages, answers


@partial(jax.jit, static_argnames="name")
def compiled(name, logp, old, advantages, answers, kl_weight):
    """The sums of a method and the gradient of its loss. Without `old`, nothing is a reference."""

    def loss(logp):
        reference, settings = None if old is None else old - 0.1, PolicyConfig(name, tokens=20, kl_weight=kl_weight)
        sums = policy_loss(settings, logp, advantages, answers, S, old, reference, -logp)
        return sums["loss"].total, sums

    gradient, sums = jax.grad(loss, has_aux=True)(logp)
    return sums, gradient


computed = partial(compiled, kl_weight=0.1)  # an argument too, so that one program does for all


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up_to_the_whole(name):
    logp, old, advantages, answers = rollout(1)
    whole, gradient = computed(name, logp, old, advantages, answers)
    assert set(whole) == {"loss", "ratio", "moved", "clipped_low", "clipped_high", "kl", "entropy"}
    for cut in range(1, B):
        # The other rows have no answers, so all parts are one program.
        shares = [answers * (np.arange(B) < cut)[:, None], answers * (np.arange(B) >= cut)[:, None]]
        parts = [computed(name, logp, old, advantages, share) for share in shares]
        added = jax.tree.map(jnp.add, *parts)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), added, (whole, gradient))


@pytest.mark.parametrize("name", METHODS)
def test_tokens_that_are_not_trained_are_nothing(name):
    logp, old, advantages, answers = rollout(3)
    noise = np.where(answers > 0, 0, 1e6).astype(np.float32)
    before, after = (computed(name, given, old, advantages, answers) for given in (logp, logp + noise))
    del before[0]["entropy"], after[0]["entropy"]  # here a function of the log-probabilities
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert np.all(np.asarray(after[1])[answers == 0] == 0) and np.any(after[1])


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope", "clipped"),
    [
        (1.25, 1.0, 1.25, None),  # below 1.28: clip-higher lets it grow
        (1.30, 1.0, 0.0, "clipped_high"),
        (1.30, -0.5, -0.65, None),  # a step back towards 1 is never clipped
        (0.75, 0.5, 0.375, None),
        (0.75, -1.0, 0.0, "clipped_low"),
        (0.85, -1.0, -0.85, None),
    ],
)
def test_dapo_clips_above_1_28_and_below_0_8(ratio, advantage, slope, clipped):
    old, answers = np.zeros((1, 1), np.float32), np.ones((1, 1), np.int32)
    advantages, logp = np.full((1, 1), advantage, np.float32), np.log(np.full((1, 1), ratio, np.float32))
    sums, gradient = computed("dapo", logp, old, advantages, answers, kl_weight=0.0)
    np.testing.assert_allclose(gradient, -slope, rtol=1e-6)
    found = means(sums)
    assert {name for name in ("clipped_low", "clipped_high") if found[name]} == ({clipped} if clipped else set())
    assert found["moved"] == 1 and found["ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_a_ratio_out_of_bounds_has_a_finite_gradient(name, shift):
    logp, _, advantages, answers = rollout(4)
    found = computed(name, logp, logp + np.float32(shift), advantages, answers)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
