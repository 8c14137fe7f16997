"""Norms are their formulas, in float32 inside, and their parameters start as no change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.small import CONFIG, mesh
from tpullm.model.mlp import Norm, normalized


def by_hand(x, axes, epsilon, centered):
    x = np.asarray(x, np.float64)
    x = x - x.mean(axes, keepdims=True) if centered else x
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon)


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
    expected = by_hand(x, axes, 1e-3, centered=kind == "layer")
    np.testing.assert_allclose(fresh, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, expected * (np.asarray(scale) + offset) + bias, rtol=1e-5, atol=1e-5)


def test_a_norm_in_bfloat16_is_rounded_once():
    x = jax.random.normal(jax.random.key(0), (4, 64)).astype(jnp.bfloat16)
    ones = jnp.ones(64)
    with jax.set_mesh(mesh()):
        found, exact = normalized(x, ones, ones, 1e-6), normalized(x.astype(jnp.float32), ones, ones, 1e-6)
    assert found.dtype == jnp.bfloat16 and (found == exact.astype(jnp.bfloat16)).all()


def test_the_backward_pass_keeps_the_input_alone():
    x, scale = jnp.ones((4, 64)), jnp.ones(64)
    with jax.set_mesh(mesh()):
        backward = jax.make_jaxpr(lambda x: jax.vjp(lambda x: normalized(x, scale, None, 1e-6), x)[1])(x)
    assert [value.shape for value in backward.out_avals if value.size == x.size] == [x.shape]
