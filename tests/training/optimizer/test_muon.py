"""Muon against numpy's SVD, and the collectives that it takes on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.eight_devices import printed
from tests.training.small import mesh
from tpullm.training.optimizer.muon import COEFFICIENTS, STEPS, orthogonalized, scale_by_muon

RUN = jax.jit(orthogonalized)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16)])
def test_orthogonalized_is_the_polynomial_of_the_singular_values(shape):
    """Exactly, by numpy's SVD in float64; 1e-4 is some roundings of 6e-8 times the slope of 485."""
    x = random(*shape)
    with jax.set_mesh(mesh()):
        found = np.asarray(RUN(x))
        assert not np.any(RUN(jnp.zeros(shape))), "a gradient of zeros moves nothing"
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    s /= np.sqrt((s**2).sum(axis=-1, keepdims=True))
    for _ in range(STEPS):
        s = sum(c * s**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
    np.testing.assert_allclose(found, u * s[:, None] @ vt, atol=1e-4)
    assert s.min() > 0.65 and s.max() < 1.25


def test_singular_values_from_a_hundredth_to_one_end_near_one():
    s = np.linspace(0.01, 1, 10_000)
    for _ in range(STEPS):
        s = sum(c * s**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
    assert (round(s.min(), 2), round(s.max(), 2)) == (0.68, 1.13)


def test_bfloat16_matmuls_keep_the_singular_values_near_one():
    """The polynomial amplifies roundings of 2^-9: the band is 0.15 wider on each side."""
    with jax.set_mesh(mesh()):
        found = jax.jit(orthogonalized)(random(2, 32, 96).astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    s = np.linalg.svd(np.asarray(found, np.float32), compute_uv=False)
    assert 0.5 < s.min() and s.max() < 1.4


def test_heads_are_one_side_layers_and_experts_are_apart_and_momentum_is_nesterovs():
    axes = {"query": ("layers", "embed", "heads", "head"), "gate": ("layers", "experts", "embed", "mlp")}
    shapes = {"query": (2, 16, 4, 8), "gate": (2, 3, 16, 8)}
    grads = [{name: random(*shape, seed=seed) for name, shape in shapes.items()} for seed in (1, 2)]
    muon = scale_by_muon(0.9, axes, jnp.float32)
    with jax.set_mesh(mesh()):
        state = muon.init(grads[0])
        for grad in grads:
            found, state = jax.jit(muon.update)(grad, state)
        for name, (inputs, outputs) in {"query": (16, 32), "gate": (16, 8)}.items():
            first, second = (np.asarray(grad[name]).reshape(-1, inputs, outputs) for grad in grads)
            mean = 0.9 * 0.1 * first + 0.1 * second
            ahead = jnp.asarray(0.9 * mean + 0.1 * second)
            expected = RUN(ahead) * 0.2 * max(inputs, outputs) ** 0.5
            np.testing.assert_allclose(np.asarray(found[name]).reshape(ahead.shape), expected, atol=1e-4)


def test_matrices_move_whole_and_are_gathered_nowhere():
    """All-to-all there and back. Only results that were split along `sequence` are all-gathered."""
    found = printed("tests.training.optimizer.sharded_moves")
    assert found == {"both": ["all-to-all"], "shared": ["all-to-all", "all-gather"]}
