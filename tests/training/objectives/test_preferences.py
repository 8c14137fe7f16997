"""What is true of objectives of preferences, whatever the numbers."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small import means
from tpullm.recipe.schema import PreferenceConfig
from tpullm.training.losses import sum_by_sequence, values_to_tokens
from tpullm.training.objectives.preferences import PAIRED, Answers, kto

N = 6
SETTINGS = {
    "dpo": PreferenceConfig(beta=0.3, label_smoothing=0.1),
    "dpo per token": PreferenceConfig(beta=0.3, per_token=True),
    "ipo": PreferenceConfig("ipo", beta=0.3),
    "simpo": PreferenceConfig("simpo", beta=2.0),
    "simpo without margin": PreferenceConfig("simpo", beta=2.0, gamma=0.0),
    "orpo": PreferenceConfig("orpo", beta=0.3),
    "kto": PreferenceConfig("kto", beta=0.3),
}


def objective(name, chosen, rejected, weights):
    """The sums of pairs; those of KTO are of answers, of which some are good."""
    if name == "kto":
        return kto(chosen, rejected.tokens > 15, weights, SETTINGS[name], kl=0.2)
    return PAIRED[SETTINGS[name].kind](chosen, rejected, weights, SETTINGS[name])


SHIPPED = [name for name in SETTINGS if name != "simpo without margin"]


def answers(random, tokens=None):
    tokens = random.integers(1, 30, N).astype(np.float32) if tokens is None else tokens
    policy = -random.exponential(0.7, N) * tokens
    return Answers(policy.astype(np.float32), tokens, (policy + random.normal(size=N)).astype(np.float32))


def moved(answers, policy=0.0, reference=0.0):
    return answers._replace(policy=answers.policy + policy, reference=answers.reference + reference)


@partial(jax.jit, static_argnums=0)
def losses(name, chosen, rejected):
    return jax.vmap(lambda weights: objective(name, chosen, rejected, weights)["loss"].total)(jnp.eye(N))


@partial(jax.jit, static_argnums=0)
def differentiated(name, pair, weights):

    def loss(pair):
        sums = objective(name, *pair, weights)
        return sums["loss"].total, sums

    return jax.grad(loss, has_aux=True)(pair)


SEEDS, SHIFTS = st.integers(0, 2**32 - 1), st.floats(-20, 20, width=32)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, shift=SHIFTS)
def test_dpo_sees_differences_alone(seed, shift):
    """Float32 sums of numbers below 100: a rounding is 4e-6."""
    random = np.random.default_rng(seed)
    chosen, rejected = answers(random), answers(random)
    before = losses("dpo", chosen, rejected)
    for one, other in [
        (moved(chosen, shift, shift), rejected),  # an answer that both models find likelier
        (moved(chosen, shift), moved(rejected, shift)),  # a prompt whose answers all are
        (chosen, moved(rejected, shift, shift)),
    ]:
        np.testing.assert_allclose(losses("dpo", one, other), before, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_equal_answers_cost_log_2(seed):
    """Whatever the strength and the smoothing; SimPO with no margin to win by, of ORPO the part of the odds."""
    same, whole = answers(np.random.default_rng(seed)), np.ones(N, np.float32)
    for name in ("dpo", "dpo per token", "simpo without margin", "orpo"):
        sums = differentiated(name, (same, same), whole)[1]
        found = means(sums)
        assert found["odds_loss" if name == "orpo" else "loss"] == pytest.approx(math.log(2), rel=1e-6)
        assert found["margin"] == found["accuracy"] == 0
    assert found["loss"] == pytest.approx(found["nll"] + 0.3 * math.log(2), rel=1e-6)
    of_one_token = means(differentiated("orpo", (same._replace(tokens=whole), same), whole)[1])
    assert of_one_token["nll"] == pytest.approx(-same.policy.mean(), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, shift=st.floats(0, 20, width=32))
def test_kto_sees_how_far_a_ratio_is_from_the_divergence(seed, shift):
    random = np.random.default_rng(seed)
    given_answers, desirable = answers(random), random.random(N) > 0.5
    before, gradient = kto_loss(given_answers, desirable, np.float32(0.5))
    after, _ = kto_loss(moved(given_answers, shift), desirable, np.float32(0.5) + shift)
    np.testing.assert_allclose(after, before, rtol=1e-4)
    assert gradient == 0


@jax.jit
def kto_loss(answers, desirable, kl):
    loss = lambda kl: kto(answers, desirable, jnp.ones(N), SETTINGS["kto"], kl)["loss"].total  # noqa: E731
    return jax.value_and_grad(loss)(kl)


@pytest.mark.parametrize("name", SHIPPED)
def test_parts_add_up_to_the_whole(name):
    """Loss, gradient and what is logged: the same terms, summed in another order. And padding is nothing."""
    random = np.random.default_rng(3)
    pair, weights = (answers(random), answers(random)), (np.arange(N) != 4).astype(np.float32)
    whole = differentiated(name, pair, weights)
    for cut in range(1, N):
        # The other pairs have no weight, so all parts are one program.
        shares = weights * (np.arange(N) < cut), weights * (np.arange(N) >= cut)
        added = jax.tree.map(jnp.add, *(differentiated(name, pair, share) for share in shares))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), added, whole)
    gradients = whole[0]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients[0].policy))
    assert all(np.all(np.asarray(leaf)[4] == 0) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("policy", [0.0, -1e-9, -1e4])
def test_gradients_are_finite_at_the_ends(name, policy):
    """An answer without tokens (padding), one that is certain, one that is all but impossible."""
    tokens, whole = np.full(N, 0 if policy == 0 else 3, np.float32), np.ones(N, np.float32)
    one = Answers(np.full(N, policy, np.float32), tokens, np.zeros(N, np.float32))
    other = answers(np.random.default_rng(0))
    for pair in ((one, other), (other, one), (one, one)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(differentiated(name, pair, whole)))


def test_sums_over_sequences_and_back():
    values = np.array([[1.0, 2.0, 4.0, np.inf, 8.0]], np.float32)
    sequences = np.array([[2, 1, 2, 0, 1]])
    sums = sum_by_sequence(values, sequences, 3)
    assert sums.tolist() == [[10, 5, 0]]
    assert values_to_tokens(sums, sequences).tolist() == [[5, 10, 5, 0, 10]]
