"""The optimizer: the schedule's shape, decay on matrices only, and the update of the paper."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpullm.config import OptimizerConfig
from tpullm.training.optim import learning_rate, make_optimizer


def test_cosine_rises_to_the_peak_and_falls_to_the_last():
    rate = learning_rate(OptimizerConfig(peak_lr=1.0, warmup_steps=10, final_lr_fraction=0.1), steps=110)
    values = np.array([float(rate(step)) for step in range(110)])
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(values[60], 0.55, rtol=1e-3)
    assert (np.diff(values[10:]) < 0).all()
    np.testing.assert_allclose(float(rate(110)), 0.1, rtol=1e-6)


def test_wsd_is_constant_until_the_decay():
    config = OptimizerConfig(peak_lr=1.0, schedule="wsd", warmup_steps=10, decay_fraction=0.2)
    values = np.array([float(learning_rate(config, 100)(step)) for step in range(101)])
    np.testing.assert_allclose(values[10:81], 1.0)
    np.testing.assert_allclose(values[90], 0.5, rtol=1e-6)
    np.testing.assert_allclose(values[100], 0.0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_shorter_than_its_warmup_still_has_finite_rates(schedule, steps):
    rate = learning_rate(OptimizerConfig(schedule=schedule, warmup_steps=100), steps)
    assert all(np.isfinite(float(rate(step))) and float(rate(step)) > 0 for step in range(steps))


def test_the_update_is_adamw_with_decay_on_matrices_only():
    config = OptimizerConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1e9)
    axes = {"matrix": ("layers", "embed", "mlp"), "scale": ("layers", "embed")}
    optimizer = make_optimizer(config, 1000, axes)
    params = {"matrix": jnp.full((2, 3, 4), 2.0), "scale": jnp.full((2, 3), 2.0)}
    grads = {"matrix": jnp.full((2, 3, 4), -0.3), "scale": jnp.full((2, 3), -0.3)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # The first update of Adam is the sign of the gradient; the decay adds rate * decay * parameter.
    np.testing.assert_allclose(updates["scale"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["matrix"], 0.1 - 0.1 * 0.5 * 2.0, atol=1e-6)


def test_a_long_gradient_is_scaled_to_the_clip_norm():
    config = OptimizerConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1.0, epsilon=1.0)
    optimizer = make_optimizer(config, 1000, {"w": ("embed",)})
    params = {"w": jnp.zeros(2)}
    long, _ = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    unit, _ = optimizer.update({"w": jnp.array([0.6, 0.8])}, optimizer.init(params), params)
    np.testing.assert_allclose(long["w"], unit["w"], rtol=1e-5)
