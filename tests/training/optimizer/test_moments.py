"""Moments in bfloat16: rounded without a bias, and the same on every mesh and after every restart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.small import mesh
from tpullm.training.optimizer.moments import stochastic_round, store_in_bfloat16

ROUND = jax.jit(stochastic_round)


def after(steps, optimizer, size=2048, seed=0):
    """The state after gradients of a deviation that differs from element to element."""
    random = np.random.default_rng(seed)
    scales = 10.0 ** random.uniform(-6, 0, size)
    with jax.set_mesh(mesh()):
        state, update = optimizer.init(jnp.zeros(size)), jax.jit(optimizer.update)
        for _ in range(steps):
            _, state = update(jnp.asarray(random.normal(size=size) * scales, jnp.float32), state)
    return state


def test_rounding_goes_to_a_neighbour_and_is_right_on_average():
    """A draw's deviation is at most half a step, 2^-8 of the value; the mean of 4,096 has 2^-14, 5 of them are 3e-4."""
    with jax.set_mesh(mesh()):
        for value in (1.0 + 1 / 1024, -1.0 - 7 / 1024, 3.14159e-12, -2.5e20):
            found = np.asarray(ROUND(np.full(4096, value, np.float32), np.uint32(2654435761)), np.float64)
            assert len(set(found)) == 2 and found.min() < value < found.max()
            np.testing.assert_allclose(found.mean(), value, rtol=3e-4)
        exact = np.resize(np.float32([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, 2.0**-130]), 4096)
        assert np.float32(ROUND(exact, np.uint32(7))).tobytes() == exact.tobytes()
        assert np.isnan(np.float32(ROUND(np.full(4096, np.nan, np.float32), np.uint32(8)))).all()


def test_a_second_moment_is_near_that_in_float32(beta2=0.999):
    """Within 4.5 deviations as `moments.py` derives them, and right on average: 5 / sqrt(2,048) is a ninth of one."""
    plain = optax.scale_by_adam(b2=beta2)
    exact = np.asarray(after(300, plain).nu, np.float64)
    found = np.asarray(after(300, store_in_bfloat16(plain)).state.nu, np.float64)
    off, deviation = found / exact - 1, 2**-8 / np.sqrt(1 - beta2**2)
    assert np.abs(off).max() < 4.5 * deviation and abs(off.mean()) < deviation / 9
    assert off.std() > deviation / 8  # it is rounded at all


def test_the_rounding_depends_on_the_step_alone():
    one, other = (after(5, store_in_bfloat16(optax.scale_by_adam())).state for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(one)} == {"int32", "bfloat16"}


@pytest.mark.parametrize("shape", [(4096,), (64, 64), (8, 16, 32)])
def test_every_element_draws_for_itself(shape):
    """So no two slices of an array are rounded alike, and neither are two steps; half of the draws are up."""
    with jax.set_mesh(mesh()):
        value = np.full(shape, 1.0 + 2.0**-8, np.float32)  # halfway between two neighbours
        one, other = (np.asarray(ROUND(value, np.uint32(salt))) > 1 for salt in (1, 2))
    for drawn in (one, other, one != other):
        # 4,096 draws of one half have a deviation of 0.008; each row of 32 or more differs from all others.
        assert abs(drawn.mean() - 0.5) < 0.04
        for axis, size in enumerate(shape):
            rows = np.moveaxis(drawn, axis, 0).reshape(size, -1)
            assert rows.shape[1] < 32 or len({row.tobytes() for row in rows}) == size


def test_only_float32_arrays_are_stored_in_bfloat16():
    state = {"count": jnp.zeros((), jnp.int32), "a": jnp.zeros(4096), "b": jnp.zeros(4096)}
    halfway = state | {name: jnp.full(4096, 1.0 + 2.0**-8) for name in "ab"}
    moving = store_in_bfloat16(optax.GradientTransformation(lambda _: state, lambda g, s, p=None: (g, halfway)))
    with jax.set_mesh(mesh()):
        _, after_one = moving.update({}, moving.init({}))
        _, after_two = moving.update({}, after_one)
    assert after_one.state["count"].dtype == jnp.int32 and (int(after_one.count), int(after_two.count)) == (1, 2)
    drawn = [np.asarray(of.state[name]) > 1 for of in (after_one, after_two) for name in "ab"]
    assert len({rounded.tobytes() for rounded in drawn}) == 4
