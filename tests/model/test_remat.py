"""The forward pass keeps what `model.remat` says, and no number depends on it."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import CONFIG, batch, mesh, params
from tpullm.model.architecture import Architecture
from tpullm.model.block import POLICIES
from tpullm.training.step import batch_loss


def loss_of(policy):
    architecture = Architecture(dataclasses.replace(CONFIG, remat=policy))
    return lambda tree: batch_loss(architecture, tree, batch(), dtype=jnp.float32)[0]


@functools.cache
def loss_and_gradients(policy):
    with jax.set_mesh(mesh()):
        return jax.jit(jax.value_and_grad(loss_of(policy)))(params())


# What the others keep is below.
@pytest.mark.parametrize(
    "policy", [pytest.param(name, marks=pytest.mark.ci if name == "full" else pytest.mark.slow) for name in POLICIES]
)
def test_no_policy_changes_a_number(policy):
    """What is computed again is computed alike; 1e-6 is 16 roundings of float32 where a program orders a sum anew.

    `offload` is by a CPU too: it has a pinned host's memory beside the device's.
    """
    (loss, gradients), (wanted_loss, wanted) = loss_and_gradients(policy), loss_and_gradients("none")
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for found, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def kept(policy) -> Counter:
    """How many numbers the forward pass keeps, by the memory that they are in."""
    with jax.set_mesh(mesh()):
        backward = jax.make_jaxpr(lambda tree: jax.vjp(loss_of(policy), tree)[1])(params())
    numbers = Counter()
    for value in backward.out_avals:
        numbers[value.memory_space.name] += value.size
    return numbers


def test_what_is_kept_is_what_the_policy_names():
    rows = CONFIG.layers * batch().inputs.size
    attention = CONFIG.heads * CONFIG.head_width
    # queries, keys, values, the mixed values and their projection, gate and up; no gradient needs the output of `down`
    dots = 2 * attention + 2 * CONFIG.kv_heads * CONFIG.head_width + CONFIG.width + 2 * CONFIG.mlp_width
    full = kept("full")
    assert kept("save_attention") == full + Counter(Device=rows * attention)
    assert kept("save_dots") == full + Counter(Device=rows * dots)
    assert kept("offload") == full + Counter(Host=rows * dots)
    assert kept("none")["Device"] > kept("save_dots")["Device"]
