"""The lookup is a matmul with one-hot rows, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.model.linear import lookup
from tpullm.model.mesh import RULES

AXES = ("vocabulary", "embed")


def looked_up(table, tokens, dtype, reduce_dtype="compute"):
    table, tokens = jax.reshard(table, RULES.spec(*AXES)), jax.reshard(tokens, RULES.spec("batch", "time"))
    return lookup(AXES, reduce_dtype, dtype, table, tokens)


@pytest.mark.parametrize("reduce_dtype", ["compute", "float32"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_and_gradient_are_those_of_one_hot_rows(dtype, reduce_dtype):
    table = jax.random.normal(jax.random.key(0), (11, 6))
    tokens = np.array([[0, 10, 3], [3, 3, 7]], np.int32)
    with jax.set_mesh(mesh()):
        found, back = jax.vjp(lambda table: looked_up(table, tokens, dtype, reduce_dtype), table)
        cotangent = jax.random.normal(jax.random.key(1), found.shape).astype(dtype)
        (gradient,) = back(jax.reshard(cotangent, jax.typeof(found).sharding.spec))
    assert found.dtype == dtype and gradient.dtype == table.dtype
    assert (found == table.astype(dtype)[tokens]).all()
    one_hot = np.eye(11)[tokens]
    expected = np.einsum("btv,btd->vd", one_hot, np.asarray(cotangent, np.float64))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)  # float32 sums of 3 terms


def test_the_gradient_of_a_common_token_is_summed_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    tokens = np.zeros((1, 4096), np.int32)
    with jax.set_mesh(mesh()):
        found, back = jax.vjp(lambda table: looked_up(table, tokens, jnp.bfloat16), jnp.ones((3, 2)))
        (gradient,) = back(jnp.ones_like(found))
    assert gradient.tolist() == [[4096, 4096], [0, 0], [0, 0]]
