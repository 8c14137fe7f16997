"""The feed-forward layer, norms and dropout are their formulas, in float32 inside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.small import CONFIG, mesh
from tpullm.model.mlp import Norm, activated, dropout, normalized, residual_scale

FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula_times_what_is_given(name, gated, scaled):
    gate, up, scale = (jax.random.normal(jax.random.key(n), (2, 5, 8)) for n in range(3))
    with jax.set_mesh(mesh()):
        found = activated(name, 0.0, gate, up if gated else None, scale if scaled else None)
    expected = FORMULAS[name](np.asarray(gate, np.float64)) * (up if gated else 1) * (scale if scaled else 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_limit_clips_the_gate_from_above_and_the_rest_on_both_sides():
    """gpt-oss: `g sigmoid(1.702 g) (u + 1)`."""
    gate, up = 4 * jax.random.normal(jax.random.key(0), (2, 64)), 4 * jax.random.normal(jax.random.key(1), (2, 64))
    with jax.set_mesh(mesh()):
        found = activated("silu", 2.0, gate, up)
    g, u = np.minimum(np.asarray(gate, np.float64), 2), np.clip(np.asarray(up, np.float64), -2, 2)
    np.testing.assert_allclose(found, g / (1 + np.exp(-1.702 * g)) * (u + 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [(lambda *x: activated("silu", 0.0, *x), 2), (lambda x: normalized(x, jnp.ones(64), None, 1e-6), 1)],
)
def test_the_backward_pass_keeps_the_inputs_alone(function, inputs):
    given = [jnp.ones((4, 64))] * inputs
    with jax.set_mesh(mesh()):
        backward = jax.make_jaxpr(lambda *x: jax.vjp(function, *x)[1])(*given)
    assert [value.shape for value in backward.out_avals if value.size == 4 * 64] == [(4, 64)] * inputs


@pytest.mark.parametrize(("shape", "names"), [((8,), ("width",)), ((3, 8), ("heads", "head"))])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("offset", [False, True])
def test_a_fresh_norm_normalizes_and_then_scales(kind, offset, shape, names):
    """Over all dimensions that its parameters have; a scale may be stored as its difference from 1."""
    config = dataclasses.replace(CONFIG, norm=kind, norm_unit_offset=offset, norm_epsilon=1e-3)
    x = jax.random.normal(jax.random.key(0), (2, 5, *shape)) + 2.0
    axes = tuple(range(-len(shape), 0))
    with jax.set_mesh(mesh()):
        norm = Norm(config, shape, names, nnx.Rngs(0))
        fresh = norm(x)
        scale = norm.scale[...] = jax.random.normal(jax.random.key(1), shape)
        assert (norm.bias is not None) == (kind == "layer")
        bias = 0.0
        if norm.bias is not None:
            bias = norm.bias[...] = jax.random.normal(jax.random.key(2), shape)
        found = norm(x)
    x = np.asarray(x, np.float64)
    x = x - x.mean(axes, keepdims=True) if kind == "layer" else x
    expected = x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-3)
    np.testing.assert_allclose(fresh, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, expected * (np.asarray(scale) + offset) + bias, rtol=1e-5, atol=1e-5)


def test_a_norm_in_bfloat16_is_rounded_once():
    x = jax.random.normal(jax.random.key(0), (4, 64)).astype(jnp.bfloat16)
    ones = jnp.ones(64)
    with jax.set_mesh(mesh()):
        found, exact = normalized(x, ones, ones, 1e-6), normalized(x.astype(jnp.float32), ones, ones, 1e-6)
    assert found.dtype == jnp.bfloat16 and (found == exact.astype(jnp.bfloat16)).all()


def test_what_all_layers_add_to_the_stream_has_the_variance_of_one_input():
    """Two additions a layer, each a sum of `inputs` terms of that deviation."""
    for inputs, layers in ((64, 1), (64, 12), (4096, 32)):
        np.testing.assert_allclose(2 * layers * inputs * residual_scale(inputs, layers) ** 2, 1.0)


def test_dropout_keeps_the_mean_and_needs_a_key_and_a_rate():
    x = jnp.full((100, 100), 3.0, jnp.bfloat16)
    with jax.set_mesh(mesh()):
        assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
        found = dropout(x, 0.25, jax.random.key(0))
    assert found.dtype == x.dtype and set(np.asarray(found, np.float32).ravel()) == {0.0, 4.0}
    # A share of 10,000 draws; one deviation is 0.0043.
    np.testing.assert_allclose((np.asarray(found) == 0).mean(), 0.25, atol=0.02)
