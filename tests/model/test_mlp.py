"""The parts of the model: what is written by hand for speed computes what is written plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.model.attention import rope
from tpullm.model.attention.rope import rotary, rotary_table
from tpullm.model.linear import matmul
from tpullm.model.mlp import activated
from tpullm.model.norm import normalized
from tpullm.recipe.schema import ModelConfig

PRODUCTS = {
    "btd,df->btf": ((2, 16, 12), (12, 20)),
    "btd,dnh->btnh": ((2, 16, 12), (12, 3, 8)),
    "btnh,nhd->btd": ((2, 16, 3, 8), (3, 8, 12)),
}


def _arrays(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def _gradients(function, arguments, cotangent):
    with jax.set_mesh(mesh()):
        return jax.jit(lambda *values: jax.vjp(function, *values)[1](cotangent))(*arguments)


@pytest.mark.parametrize("subscripts", PRODUCTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Sums of up to 32 terms in another order: some roundings of 6e-8, or of 4e-3 in bfloat16.
    [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)],
)
def test_the_gradient_of_a_product_is_that_of_the_plain_one(subscripts, dtype, tolerance):
    x, weight = _arrays(*PRODUCTS[subscripts], dtype=dtype)
    cotangent = jnp.einsum(subscripts, x, weight)
    axes = tuple(
        {"d": "embed", "f": "mlp", "n": "heads", "h": "head"}[letter]
        for letter in subscripts.split("->")[0].split(",")[1]
    )
    ours = _gradients(lambda x, w: matmul(subscripts, axes, "compute", None, x, w), (x, weight), cotangent)
    plain = _gradients(lambda x, w: jnp.einsum(subscripts, x, w), (x, weight), cotangent)
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype == dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_rotary_turns_each_pair_by_its_angle():
    """As complex numbers (Su et al. 2021, section 3.4.2): the pair (h, h + H/2) times exp(i position theta^(-2h/H))."""
    (x,) = _arrays((2, 5, 3, 8))
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]], np.int32)
    config = ModelConfig(head_width=8)
    with jax.set_mesh(mesh()):
        turned = jax.jit(lambda x: rotary(x, rotary_table(positions, np.ones_like(positions), config, local=False)))(x)
    turned = np.asarray(turned)
    angles = positions[:, :, None, None] * 10_000.0 ** (-np.arange(4) / 4)
    expected = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * np.exp(1j * angles)
    np.testing.assert_allclose(turned[..., :4], expected.real, atol=2e-6)  # roundings of numbers up to about 3
    np.testing.assert_allclose(turned[..., 4:], expected.imag, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tpus_form_of_rotary_gives_the_same_bits(dtype, monkeypatch):
    """A product with a permutation adds zeros to one number; its gradient is the turn back, as JAX finds it."""
    x, cotangent = _arrays((2, 5, 3, 8), (2, 5, 3, 8), dtype=dtype)
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]], np.int32)

    def both(turn):
        with jax.set_mesh(mesh()):
            table = rotary_table(positions, np.ones_like(positions), ModelConfig(head_width=8), local=False)
            out, back = jax.vjp(lambda x: turn(x, table), x)
            return np.asarray(out, np.float32), np.asarray(back(cotangent)[0], np.float32)

    here = both(rotary)
    differentiated = both(lambda x, table: rotary.__wrapped__(x.astype(jnp.float32), table).astype(dtype))
    monkeypatch.setattr(rope, "target", lambda: "tpu")
    for ours, others, plain in zip(both(rotary), here, differentiated, strict=True):
        np.testing.assert_array_equal(ours, others)
        np.testing.assert_array_equal(others, plain)


def test_the_gate_and_the_norm_are_their_formulas():
    gate, up, scale = _arrays((2, 5, 8), (2, 5, 8), (8,))
    with jax.set_mesh(mesh()):
        found = activated("silu", 0.0, gate, up), normalized(gate, scale, None, 1e-6)
    gate, up, scale = (np.asarray(x, np.float64) for x in (gate, up, scale))
    np.testing.assert_allclose(found[0], gate / (1 + np.exp(-gate)) * up, rtol=1e-5, atol=1e-6)
    expected = gate / np.sqrt((gate**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-6)
