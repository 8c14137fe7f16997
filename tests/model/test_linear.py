"""A matmul with a parameter and a lookup in one, and their gradients."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.small import CONFIG, mesh
from tpullm.model.linear import Linear, einsum, lookup, matmul, parameter
from tpullm.model.mesh import RULES

MATMULS = {
    "btd,df->btf": ((2, 16, 12), (12, 20)),
    "btd,dnh->btnh": ((2, 16, 12), (12, 3, 8)),
    "btnh,nhd->btd": ((2, 16, 3, 8), (3, 8, 12)),
}


def axes_of(subscripts):
    names = {"d": "embed", "f": "mlp", "n": "heads", "h": "head"}
    return tuple(names[letter] for letter in subscripts.split("->")[0].split(",")[1])


def normal(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("subscripts", MATMULS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Sums of up to 32 terms in another order: some roundings of 6e-8, or of 4e-3 in bfloat16.
    [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)],
)
def test_the_gradient_of_a_matmul_is_that_of_einsum(subscripts, dtype, tolerance):
    x, weight = normal(*MATMULS[subscripts], dtype=dtype)
    cotangent, axes = jnp.einsum(subscripts, x, weight), axes_of(subscripts)
    with jax.set_mesh(mesh()):
        ours, plain = (
            jax.jit(lambda *both, of=of: jax.vjp(of, *both)[1](cotangent))(x, weight)
            for of in (partial(matmul, subscripts, axes, "compute", "compute", None), partial(jnp.einsum, subscripts))
        )
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype == dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("subscripts", MATMULS)
def test_on_a_cpu_no_matmul_transposes_the_weight(subscripts):
    """Forward and for the gradient of the input. `jnp.einsum` alone sums over dimensions in their letters' order."""
    x, weight = normal(*MATMULS[subscripts])
    (left, right), out = subscripts.split("->")[0].split(","), subscripts.split("->")[1]
    with jax.set_mesh(mesh()):
        for own, tokens in ((subscripts, x), (f"{out},{right}->{left}", jnp.einsum(subscripts, x, weight))):
            program = jax.make_jaxpr(lambda tokens, own=own: einsum(own, tokens, weight, None))(tokens)
            (product,) = [line for line in program.eqns if line.primitive.name == "dot_general"]
            (of_left, of_right), _ = product.params["dimension_numbers"]
            assert [*of_left] == sorted(of_left) and [*of_right] == sorted(of_right)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_its_matmul_and_bias(bias):
    """Fresh weights keep the variance of their inputs: the deviation is one over the root of their number."""
    (x,) = normal((2, 5, 4, 16))
    with jax.set_mesh(mesh()):
        layer = Linear(CONFIG, nnx.Rngs(0), (4, 16), (256,), ("heads", "head", "embed"), bias)
        assert (layer.bias is not None) == bias
        if bias:
            assert (np.asarray(layer.bias[...]) == 0).all() and layer.bias_axes == ("width",)
            layer.bias[...] = jnp.arange(256.0)
        found = layer("btnh,nhd->btd", x, RULES.spec("batch", "time", "width"))
    weight = np.asarray(layer.weight[...])
    assert weight.shape == (4, 16, 256)
    np.testing.assert_allclose(weight.std(), 1 / 8, rtol=0.02)  # of 16,384 numbers; one deviation is 0.006 of it
    expected = np.einsum("btnh,nhd->btd", x, weight) + (np.arange(256) if bias else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)  # sums of 64 terms, beside biases of up to 255


@pytest.mark.parametrize("scale", [0.02, 3.0])
def test_a_parameter_has_the_deviation_that_is_asked_for(scale):
    """Cut at two deviations of the normal before it is scaled up to the one asked for; 5 deviations of an estimate."""
    with jax.set_mesh(mesh()):
        made = parameter(nnx.Rngs(0), (300, 300), ("embed", "mlp"), scale)
        values = np.asarray(made[...], np.float64)
    assert made.get_metadata()["logical_axes"] == ("embed", "mlp") and made[...].dtype == jnp.float32
    np.testing.assert_allclose(values.std(), scale, rtol=5 / math.sqrt(2 * values.size))
    assert abs(values.mean()) < 5 * scale / 300 and np.abs(values).max() <= scale * 2 / 0.87962566 * 1.000001


def test_parameters_without_a_scale_are_ones_and_of_scale_0_zeros():
    with jax.set_mesh(mesh()):
        ones, zeros = (parameter(nnx.Rngs(0), (3,), ("width",), scale)[...] for scale in (None, 0.0))
    assert (np.asarray(ones) == 1).all() and (np.asarray(zeros) == 0).all()


AXES = ("vocabulary", "embed")


def looked_up(table, tokens, dtype, reduce_dtype="compute"):
    table, tokens = jax.reshard(table, RULES.spec(*AXES)), jax.reshard(tokens, RULES.spec("batch", "time"))
    return lookup(AXES, reduce_dtype, dtype, table, tokens)


@pytest.mark.parametrize(("dtype", "reduce_dtype"), [(jnp.float32, "compute"), (jnp.bfloat16, "float32")])
def test_rows_and_gradient_are_those_of_one_hot_rows(dtype, reduce_dtype):
    table = jax.random.normal(jax.random.key(0), (11, 6))
    tokens = np.array([[0, 10, 3], [3, 3, 7]], np.int32)
    cotangent = np.random.default_rng(1).standard_normal((2, 3, 6), np.float32).astype(dtype)

    @jax.jit
    def both(table):
        found, back = jax.vjp(lambda table: looked_up(table, tokens, dtype, reduce_dtype), table)
        return found, back(jax.reshard(cotangent, jax.typeof(found).sharding.spec))[0]

    with jax.set_mesh(mesh()):
        found, gradient = both(table)
    assert found.dtype == dtype and gradient.dtype == table.dtype
    assert (found == table.astype(dtype)[tokens]).all()
    one_hot = np.eye(11)[tokens]
    expected = np.einsum("btv,btd->vd", one_hot, np.asarray(cotangent, np.float64))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)  # float32 sums of 3 terms


def test_the_gradient_of_a_common_token_is_summed_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    tokens = np.zeros((1, 4096), np.int32)
    of_ones = lambda table: jnp.sum(looked_up(table, tokens, jnp.bfloat16).astype(jnp.float32))  # noqa: E731
    with jax.set_mesh(mesh()):
        gradient = jax.jit(jax.grad(of_ones))(np.ones((3, 2), np.float32))
    assert gradient.tolist() == [[4096, 4096], [0, 0], [0, 0]]
