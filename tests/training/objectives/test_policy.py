"""What is true of objectives of rewards, whatever the numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small import means
from tpullm.recipe.schema import PolicyConfig
from tpullm.training.objectives import policy
from tpullm.training.objectives.policy import ADVANTAGES, METHODS, k3, policy_loss

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


def computed(name, logp, old, advantages, answers, kl_weight=0.1):
    """As `compiled`; the default is an argument too, so that one program does for all."""
    return compiled(name, logp, old, advantages, answers, kl_weight)


def weights_of(method, answers):
    """By definition: what each token counts for in the mean."""
    found = np.zeros((B, T))
    present = [(row, n) for row in range(B) for n in range(1, S + 1) if (answers[row] == n).any()]
    for row, n in present:
        of_answer = answers[row] == n
        share = {"answers": 1 / of_answer.sum() / len(present), "budget": 1 / 20 / len(present)}
        found[row, of_answer] = share.get(method.average, 1 / (answers > 0).sum())
    return found


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, name=st.sampled_from(sorted(METHODS)))
def test_the_first_step_is_the_plain_policy_gradient(seed, name):
    """Every ratio is exactly 1 and nothing is clipped, whether the sampling's numbers are given or not."""
    logp, _, advantages, answers = rollout(seed)
    method, weights = METHODS[name], weights_of(METHODS[name], answers)
    for old in (None, logp) if name == "grpo" else (logp,):
        sums, gradient = computed(name, logp, old, advantages, answers, kl_weight=0.0)
        found = means(sums)
        assert found["ratio"] == 1 and found["moved"] == found["clipped_low"] == found["clipped_high"] == 0
        # The product's gradient reaches each token whole; the others divide by the tokens of the answer.
        whole = (answers > 0) * advantages / float(sums["loss"].weight)
        expected = -(whole if method.ratio == "product" else weights * advantages)
        np.testing.assert_allclose(gradient / sums["loss"].weight, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["loss"], -np.sum(weights * advantages), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up_to_the_whole(name):
    """Loss, gradient and all that is logged, however the rows are cut: the same terms in another order."""
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
    before, after = (
        computed(name, logp, old, advantages, answers),
        computed(name, logp + noise, old, advantages, answers),
    )
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


@settings(max_examples=20, deadline=None)
@given(logp=st.floats(-20, 0, width=32), reference=st.floats(-20, 0, width=32))
def test_k3_is_never_negative_and_0_only_at_no_difference(logp, reference):
    found = float(k3(jnp.float32(logp), jnp.float32(reference)))
    assert found >= 0 and float(k3(jnp.float32(logp), jnp.float32(logp))) == 0
    if abs(logp - reference) > 0.01:
        assert found > 0


def test_k3_has_no_bias():
    """Its mean over what the policy samples is the divergence."""
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(20), 2)
    np.testing.assert_allclose(np.sum(p * k3(np.log(p), np.log(q))), np.sum(p * np.log(p / q)), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, shift=st.floats(-5, 5), scale=st.floats(0.5, 4))
def test_advantages_compare_with_the_answers_to_the_same_prompt(seed, shift, scale):
    """The 1e-4 beside the deviation bends the last law, so rewards there have a deviation of some 100."""
    rewards = np.random.default_rng(seed).normal(size=(3, 5))
    for advantages in ADVANTAGES.values():
        found = advantages(rewards)
        np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(advantages(rewards + shift), found, atol=1e-5)
        np.testing.assert_allclose(advantages(rewards[::-1]), found[::-1], atol=1e-6)
    for advantages in (policy.centered, policy.leave_one_out):
        np.testing.assert_allclose(advantages(rewards * scale), advantages(rewards) * scale, atol=1e-5)
    np.testing.assert_allclose(
        policy.standardized(rewards * scale * 100), policy.standardized(rewards * 100), atol=1e-4
    )
    others = np.stack([np.delete(rewards, n, axis=1).mean(axis=1) for n in range(5)], axis=1)
    np.testing.assert_allclose(policy.leave_one_out(rewards), rewards - others, atol=1e-5)


def test_answers_without_a_reward_are_left_out():
    nan = np.nan
    rewards = np.array([[1.0, nan, 3.0], [nan, nan, 2.0], [nan, nan, nan], [4.0, 4.0, nan], [0.0, 0.0, 1.0]])
    assert policy.centered(rewards)[:4].tolist() == [[-1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert policy.leave_one_out(rewards)[:4].tolist() == [[-2, 0, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert not policy.standardized(rewards)[1:4].any()
    np.testing.assert_allclose(policy.standardized(rewards)[0], [-1 / (2**0.5 + 1e-4), 0, 1 / (2**0.5 + 1e-4)])
