"""The feed-forward layer is its formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.small import CONFIG, mesh
from tpullm.model.mlp import MLP, activated


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("name", "function"), [("silu", silu), ("gelu_tanh", gelu_tanh)])
def test_an_activation_is_its_formula_times_what_is_given(name, function, gated, scaled):
    gate, up, scale = (jax.random.normal(jax.random.key(n), (2, 5, 8)) for n in range(3))
    with jax.set_mesh(mesh()):
        found = activated(name, 0.0, gate, up if gated else None, scale if scaled else None)
    expected = function(np.asarray(gate, np.float64)) * (up if gated else 1) * (scale if scaled else 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_limit_clips_the_gate_from_above_and_the_rest_on_both_sides():
    """gpt-oss: `g sigmoid(1.702 g) (u + 1)`."""
    gate, up = 4 * jax.random.normal(jax.random.key(0), (2, 64)), 4 * jax.random.normal(jax.random.key(1), (2, 64))
    with jax.set_mesh(mesh()):
        found = activated("silu", 2.0, gate, up)
    g, u = np.minimum(np.asarray(gate, np.float64), 2), np.clip(np.asarray(up, np.float64), -2, 2)
    np.testing.assert_allclose(found, g / (1 + np.exp(-1.702 * g)) * (u + 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_the_layer_is_down_of_the_activation(gated):
    config = dataclasses.replace(CONFIG, gated=gated)
    x = jax.random.normal(jax.random.key(0), (2, 3, CONFIG.width))
    with jax.set_mesh(mesh()):
        layer = MLP(config, nnx.Rngs(0))
        found = layer(x)
    weight = lambda of: np.asarray(of.weight[...], np.float64)  # noqa: E731
    assert (layer.up is not None) == gated
    hidden = silu(x @ weight(layer.gate)) * (x @ weight(layer.up) if gated else 1)
    np.testing.assert_allclose(found, hidden @ weight(layer.down), rtol=1e-4, atol=1e-6)
    assert layer.up is None or not np.array_equal(layer.up.weight[...], layer.gate.weight[...])


def test_the_backward_pass_keeps_gate_and_up_alone():
    gate, up = jnp.ones((4, 64)), jnp.ones((4, 64))
    with jax.set_mesh(mesh()):
        backward = jax.make_jaxpr(lambda *x: jax.vjp(lambda *x: activated("silu", 0.0, *x), *x)[1])(gate, up)
    assert len([value for value in backward.out_avals if value.size == gate.size]) == 2
