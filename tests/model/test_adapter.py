"""Adapters: a fresh one changes nothing, merged is as unmerged, on any mesh, and a frozen matrix costs no gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.training.small import CONFIG, batch, mesh, params
from tpullm.model.adapter import NAME, merge_adapters, with_magnitudes
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import AdapterConfig
from tpullm.training.step import batch_loss

KINDS = {
    "lora": AdapterConfig(rank=3),
    "rslora": AdapterConfig(rank=4, alpha=6.0, root_scale=True),
    "dora": AdapterConfig(rank=3, magnitude=True),
    "some": AdapterConfig(rank=2, targets=("query", "down")),
}
F32 = jnp.dtype("float32")


def mean_loss(architecture, params, rows):
    total, sums = batch_loss(architecture, params, rows, dtype=F32)
    return total / sums.weight


@functools.cache
def of_plain():
    """The loss and gradient of a model without an adapter, compiled once for all kinds."""
    return jax.jit(jax.value_and_grad(lambda params: mean_loss(Architecture(CONFIG), params, batch())))


# The others differ in a factor, or in which matrices have an adapter. `cli/test_finetune.py` merges a DoRA too.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("rslora", "some")]
LORA, DORA = pytest.param("lora", marks=pytest.mark.ci), pytest.param("dora", marks=pytest.mark.slow)


@functools.cache
def found(name):
    """Losses of the base, of a fresh adapter, of another one beside the base and of it merged; gradients of these two.

    By the chain rule through the merge, which JAX differentiates by itself, the gradient of merged parameters.
    DoRA's length counts as a constant, so there is none of it: it is held against PEFT's in tests/huggingface.
    """
    config = KINDS[name]
    architecture, rows, random = Architecture(CONFIG, config), batch(), np.random.default_rng(7)
    with jax.set_mesh(mesh()):
        base = params()
        init = jax.jit(lambda key: architecture.trained(architecture.init(key)))
        fresh = with_magnitudes(base, init(jax.random.key(0)))
        noisy = jax.tree.map(lambda leaf: leaf + 0.2 * random.standard_normal(leaf.shape, np.float32), fresh)
        loss = lambda adapters: mean_loss(architecture, architecture.whole(adapters, base), rows)  # noqa: E731
        alone = lambda adapters: (loss(adapters), None)  # noqa: E731
        of_adapter = jax.jit(alone if config.magnitude else jax.value_and_grad(loss))
        merged = jax.jit(lambda adapters: merge_adapters(base, adapters, config.scale))
        back = jax.jit(lambda adapters, gradient: jax.vjp(merged, adapters)[1](gradient)[0])
        begins, (beside, gradient) = of_adapter(fresh)[0], of_adapter(noisy)
        of_merged, merged_gradient = of_plain()(merged(noisy))
        wanted = None if config.magnitude else back(noisy, merged_gradient)
        return *map(float, (of_plain()(base)[0], begins, beside, of_merged)), gradient, wanted


@pytest.mark.parametrize("name", [LORA, DORA, *OTHERS])
def test_fresh_is_the_base_and_merged_is_unmerged(name):
    base, fresh, beside, merged, *_ = found(name)
    # A fresh adapter adds exactly 0; DoRA's ratio of two equal lengths may be a rounding away from 1.
    assert fresh == base or KINDS[name].magnitude and fresh == pytest.approx(base, rel=1e-6)
    assert abs(beside - base) > 1e-3
    # The same sums in another order, float32.
    assert merged == pytest.approx(beside, rel=1e-5)


@pytest.mark.parametrize("name", [LORA, *OTHERS])
def test_the_gradient_is_that_of_merged_parameters(name):
    ours, wanted = map(flatten_dict, found(name)[-2:])
    assert len(wanted) == len(ours)
    for path, leaf in wanted.items():
        # Sums in another order in float32.
        np.testing.assert_allclose(ours[path], leaf, atol=1e-5 * float(jnp.abs(leaf).max()), err_msg=str(path))


def test_only_targets_have_adapters_and_only_adapters_are_trained():
    architecture = Architecture(CONFIG, KINDS["some"])
    trained, frozen = architecture.trained(architecture.shapes), architecture.frozen(architecture.shapes)
    matrices = ("layers", "attention", "query"), ("layers", "mlp", "down")
    assert [*flatten_dict(trained)] == [(*matrix, NAME, which) for matrix in matrices for which in "ab"]
    assert jax.tree.structure(frozen) == jax.tree.structure(Architecture(CONFIG).shapes)
    assert jax.tree.structure(architecture.whole(trained, frozen)) == jax.tree.structure(architecture.shapes)


def test_a_frozen_matrix_costs_no_gradient():
    """Of the 6 FLOPs of a weight and a token 4 are left, and what the small matrices and attention cost."""
    config = dataclasses.replace(CONFIG, width=64, mlp_width=512, heads=2, kv_heads=2, head_width=32)
    rows = batch()

    def flops(architecture, of):
        with jax.set_mesh(mesh()):
            trained, frozen = of(architecture.placed(mesh()))
            step = jax.jit(jax.grad(lambda t, f: mean_loss(architecture, architecture.whole(t, f), rows)))
            return step.lower(trained, frozen).cost_analysis()["flops"]

    whole, small = Architecture(config), Architecture(config, AdapterConfig(rank=1))
    all_of_it = flops(whole, lambda params: (params, {}))
    adapters = flops(small, lambda params: (small.trained(params), small.frozen(params)))
    assert adapters < 0.8 * all_of_it
