"""Adapters: a fresh one changes nothing, merged is as unmerged, on any mesh, and a frozen matrix costs no gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import CONFIG, batch, mesh
from tpullm.model.adapter import NAME, merge, with_lengths
from tpullm.recipe.schema import AdapterConfig
from tpullm.training.state import Architecture
from tpullm.training.step import batch_loss

KINDS = {
    "lora": AdapterConfig(rank=3),
    "rslora": AdapterConfig(rank=4, alpha=6.0, root_scale=True),
    "dora": AdapterConfig(rank=3, magnitude=True),
    "some": AdapterConfig(rank=2, targets=("query", "down")),
}
F32 = jnp.dtype("float32")


def made(config, seed=0):
    """An architecture, the parameters of its base, and adapters that are not fresh."""
    architecture = Architecture(CONFIG, config)
    with jax.set_mesh(mesh()):
        params = jax.jit(architecture.init)(jax.random.key(seed))
        base = architecture.frozen(params)
        adapters = with_lengths(base, architecture.trained(params))
        keys = iter(jax.random.split(jax.random.key(7), 1000))
        noisy = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), adapters)
    return architecture, base, adapters, noisy


def mean_loss(architecture, params, rows):
    total, sums = batch_loss(architecture, params, rows, dtype=F32)
    return total / sums.weight


@pytest.mark.parametrize("name", KINDS)
def test_fresh_is_the_base_and_merged_is_unmerged(name):
    config = KINDS[name]
    architecture, base, fresh, noisy = made(config)
    plain, rows = Architecture(CONFIG), batch()
    with jax.set_mesh(mesh()):
        loss = jax.jit(lambda params: mean_loss(architecture, params, rows))
        of_base = jax.jit(lambda params: mean_loss(plain, params, rows))
        begins, without = float(loss(architecture.whole(fresh, base))), float(of_base(base))
        tuned = float(loss(architecture.whole(noisy, base)))
        merged = float(of_base(merge(base, noisy, config.scale)))
    # A fresh adapter adds exactly 0; DoRA's ratio of two equal lengths may be a rounding away from 1.
    assert begins == without or config.magnitude and begins == pytest.approx(without, rel=1e-6)
    assert abs(tuned - without) > 1e-3
    # The same sums in another order, float32.
    assert merged == pytest.approx(tuned, rel=1e-5)


def test_only_targets_have_adapters_and_only_adapters_are_trained():
    architecture = Architecture(CONFIG, KINDS["some"])
    trained, frozen = architecture.trained(architecture.shapes), architecture.frozen(architecture.shapes)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    assert paths == [
        f"['layers']['{part}']['{matrix}']['{NAME}']['{which}']"
        for part, matrix in (("attention", "query"), ("mlp", "down"))
        for which in "ab"
    ]
    assert jax.tree.structure(frozen) == jax.tree.structure(Architecture(CONFIG).shapes)
    assert jax.tree.structure(architecture.whole(trained, frozen)) == jax.tree.structure(architecture.shapes)


@pytest.mark.parametrize("name", [name for name, config in KINDS.items() if not config.magnitude])
def test_the_gradient_is_that_of_merged_parameters(name):
    """By the chain rule through the merge, which JAX differentiates by itself.

    DoRA's length counts as a constant: its gradient is held against PEFT's in tests/huggingface.
    """
    config = KINDS[name]
    architecture, base, _, noisy = made(config)
    plain, rows = Architecture(CONFIG), batch()
    with jax.set_mesh(mesh()):
        found = jax.jit(jax.grad(lambda a: mean_loss(architecture, architecture.whole(a, base), rows)))(noisy)
        wanted = jax.jit(jax.grad(lambda a: mean_loss(plain, merge(base, a, config.scale), rows)))(noisy)
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        other = dict(jax.tree_util.tree_leaves_with_path(found))[path]
        # Sums in another order in float32.
        np.testing.assert_allclose(other, leaf, atol=1e-5 * float(jnp.abs(leaf).max()), err_msg=str(path))


def test_a_frozen_matrix_costs_no_gradient():
    """Of the 6 FLOPs of a weight and a token 4 are left, and what the small matrices and attention cost."""
    config = dataclasses.replace(CONFIG, layers=2, width=64, mlp_width=512, heads=2, kv_heads=2, head_width=32)
    rows = batch()

    def flops(architecture, of):
        with jax.set_mesh(mesh()):
            params = jax.jit(architecture.init)(jax.random.key(0))
            trained, frozen = of(params)
            step = jax.jit(jax.grad(lambda t, f: mean_loss(architecture, architecture.whole(t, f), rows)))
            return step.lower(trained, frozen).compile().cost_analysis()["flops"]

    whole, small = Architecture(config), Architecture(config, AdapterConfig(rank=1))
    all_of_it = flops(whole, lambda params: (params, {}))
    adapters = flops(small, lambda params: (small.trained(params), small.frozen(params)))
    assert adapters < 0.8 * all_of_it
