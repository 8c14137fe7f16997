"""A loss or biases balance the loads of experts, and the log has these loads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import SPREAD, batch, mesh, params
from tpullm.model.architecture import Architecture
from tpullm.model.experts.moe import Routing
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.training.losses import balance_losses, load_metrics, rebalanced
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import batch_loss, make_step, with_params


def test_the_balance_loss_is_that_of_the_paper_row_by_row():
    """Equations 17 to 20 of DeepSeek-V3, a token at a time; in float64, so 1e-6 is float32."""
    config, random = SPREAD.config, np.random.default_rng(0)
    L, B, T, E, k = 2, 3, 12, config.experts, config.experts_per_token
    scores = random.random((L, B, T, E))
    scores /= scores.sum(axis=-1, keepdims=True)
    real = random.random((B, T)) < 0.8
    real[2] = False  # a row of padding costs nothing
    expected = np.zeros(B)
    loads, sums = np.zeros((L, B, 1, E), np.int32), np.zeros((L, B, 1, E), np.float32)
    for layer, row in np.ndindex(L, B):
        tokens = max(real[row].sum(), 1)
        chosen, mean = np.zeros(E), np.zeros(E)
        for token in np.flatnonzero(real[row]):
            chosen[np.argsort(-scores[layer, row, token])[:k]] += 1
            mean += scores[layer, row, token] / tokens
        expected[row] += np.sum(E / (k * tokens) * chosen * mean)
        loads[layer, row, 0], sums[layer, row, 0] = chosen, mean * tokens
    found = balance_losses(Routing(jnp.asarray(loads), jnp.asarray(sums)), jnp.asarray(real.sum(axis=1)), config)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected[0] > 2 * 0.9 and expected[2] == 0


@pytest.mark.ci
def test_every_real_token_is_counted_k_times():
    """In a model that is built; the step adds up what `batch_loss` says."""
    b, one_layer = batch(rows=4), Architecture(dataclasses.replace(SPREAD.config, layers=1, remat="none"))
    with jax.set_mesh(mesh()):
        tree = params(architecture=one_layer)
        _, sums = jax.jit(lambda p: batch_loss(one_layer, p, b, dtype=jnp.float32))(tree)
    assert sums.loads.sum() == SPREAD.config.experts_per_token * (b.segment_ids > 0).sum()


def test_the_metrics_are_multiples_of_an_even_load():
    found = load_metrics(jnp.asarray([[30, 10, 10, 10], [0, 30, 20, 10]]))
    assert found["expert_load"] == {"highest": 2.0, "lowest": 0.0}
    np.testing.assert_allclose(found["expert_loads"], [1.0, 4 / 3, 1.0, 2 / 3], rtol=1e-6)


def test_a_bias_moves_by_its_rate_against_the_load_and_by_nothing_else():
    """Whatever the optimizer made of it. Of an even load it stays."""
    before, after = ({"layers": {"mlp": {"balance": np.full((2, 4), value), "gate": value}}} for value in (0.5, 9.0))
    found = rebalanced(after, before, jnp.asarray([[30, 10, 10, 10], [5, 5, 5, 5]]), 0.01)["layers"]["mlp"]
    np.testing.assert_allclose(found["balance"], [[0.49, 0.51, 0.51, 0.51], [0.5] * 4], rtol=1e-6)
    assert found["gate"] == 9.0, "all else is as the optimizer left it"


@pytest.mark.ci
@pytest.mark.parametrize("setting", [{"balance_loss": 0.3}, {"balance_rate": 0.01}])
def test_loads_become_even(setting):
    """In a training of 60 steps on one batch, from a router that prefers two experts."""
    plain = dataclasses.replace(SPREAD.config, layers=1, remat="none", shared_experts=0, sinks=False)
    architecture = Architecture(dataclasses.replace(plain, **{"balance_loss": 0.0, "balance_rate": 0.0, **setting}))
    train = TrainConfig(batch_size=4, optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=1))
    tree = params(architecture=architecture)
    router = tree["layers"]["mlp"]["router"]
    router["bias"] = router["bias"].at[:, :2].set(1.0)
    highest, biases = [], []
    with jax.set_mesh(mesh()):
        optimizer = make_optimizer(train.optimizer, 60, architecture.axes)
        state = jax.jit(lambda tree: with_params(tree, optimizer))(tree)
        step = make_step(architecture, optimizer, train, jnp.float32, seed=0)
        for _ in range(60):
            state, metrics = step(state, jax.tree.map(jnp.asarray, batch()))
            highest.append(float(metrics["expert_load"]["highest"]))
            biases.append(np.asarray(state["params"]["layers"]["mlp"].get("balance", 0.0)))
    assert highest[0] > 2.5 and highest[-1] < 0.6 * highest[0] and metrics["balance_loss"] > 0.9
    if "balance_rate" in setting:
        np.testing.assert_array_equal(np.abs(biases[0]), np.float32(0.01))
        assert (biases[0][:, :2] < 0).all(), "the router preferred these two"


def test_without_a_rate_there_is_no_bias_and_without_experts_no_loads():
    assert "balance" in SPREAD.shapes["layers"]["mlp"]
    plain = Architecture(dataclasses.replace(SPREAD.config, balance_rate=0.0))
    assert "balance" not in plain.shapes["layers"]["mlp"]
