"""Norms by layer, and that asking for them changes no bit of a training; `test_sharded.py` has those on a mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.skipping import same_bits, toy_loss
from tests.training.small import ARCHITECTURE, TWO_LAYERS, batch, mesh, params
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.training import step as step_module
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import make_step, part_names, part_norms, step_norms, with_params

ADAMW = OptimizerConfig(warmup_steps=1)
NAMES = part_names(TWO_LAYERS.shapes, TWO_LAYERS.config.layers)


def test_each_layer_has_a_norm_of_each_of_its_parts():
    parts = ("attention", "attention_norm", "mlp", "mlp_norm")
    assert NAMES == ["embedding", "norm", *(f"layer_{layer}.{part}" for layer in (0, 1) for part in parts)]
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), TWO_LAYERS.shapes)
    tree["layers"]["mlp"] = {"one": np.ones((2, 3, 4), np.float32) * [[[0.0]], [[2.0]]]}
    with jax.set_mesh(mesh()):
        found = dict(zip(NAMES, jax.jit(part_norms)(tree).tolist(), strict=True))
    assert found == dict.fromkeys(NAMES, 0.0) | {"layer_1.mlp": pytest.approx(2 * math.sqrt(12))}


def trained(every: int, batches, accumulation: int = 1):
    """The state and the metrics after each step."""
    config = TrainConfig(batch_size=4, accumulation=accumulation, norms_every=every, optimizer=ADAMW)
    with jax.set_mesh(mesh()):
        optimizer = make_optimizer(config.optimizer, 20, ARCHITECTURE.axes)
        step = make_step(ARCHITECTURE, optimizer, config, jnp.float32, seed=0)
        state, found = with_params(params(), optimizer), []
        for one in batches:
            state, metrics = step(state, jax.tree.map(jnp.asarray, one))
            found.append(jax.tree.map(np.asarray, (state, metrics)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_change_no_bit_of_a_training(accumulation):
    batches = [batch(seed=seed) for seed in range(3)]
    (without, plain), (state, told) = (trained(every, batches, accumulation)[-1] for every in (0, 5))
    assert same_bits(without, state) and same_bits(plain, {name: told[name] for name in plain})
    assert told.keys() - plain.keys() == {"norms"} and told["norms"].shape[0] == 3


def test_without_the_key_the_program_is_the_same(monkeypatch):
    """As one in which there is no such thing; and another number of steps makes no other program."""
    monkeypatch.setattr(step_module, "batch_loss", toy_loss)
    config, b = TrainConfig(batch_size=4, optimizer=ADAMW), jax.tree.map(jnp.asarray, batch())
    with jax.set_mesh(mesh()):
        optimizer = make_optimizer(config.optimizer, 20, ARCHITECTURE.axes)
        state = with_params(params(), optimizer)

        def lowered(every):
            asks = TrainConfig(batch_size=4, norms_every=every, optimizer=ADAMW)
            return make_step(ARCHITECTURE, optimizer, asks, jnp.float32, seed=0).lower(state, b).as_text()

        assert lowered(1) == lowered(100) != lowered(0)
        monkeypatch.setattr(step_module, "step_norms", None)
        assert "norms" not in jax.eval_shape(make_step(ARCHITECTURE, optimizer, config, jnp.float32, 0), state, b)[1]


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_skipped_step_has_no_update_and_tells_the_gradient_that_it_had(skipped):
    params, grads, updates = (
        {"norm": np.float32([value, 0]), "layers": {"mlp": {"up": np.float32([[value]])}}}
        for value in (3.0, np.nan, 2.0)
    )
    with jax.set_mesh(mesh()):
        found = jax.jit(step_norms)(params, grads, updates, jnp.int32(skipped))
    np.testing.assert_array_equal(found, [[3, 3], [np.nan, np.nan], [0, 0] if skipped else [2, 2]])
