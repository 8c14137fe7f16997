"""Parameters and FLOPs, against the shapes of the parameters."""

import dataclasses
import math

import jax
import pytest

from tests.training.small import EXPERTS, TWO_LAYERS
from tpullm.formats.huggingface.tensors import flat
from tpullm.model.architecture import (
    Architecture,
    is_matrix,
    matrix_parameters,
    parameter_count,
    training_flops_per_token,
)

CONFIG = TWO_LAYERS.config

EVERY = dataclasses.replace(EXPERTS.config, experts_per_token=5)  # each token through all experts


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("config", [CONFIG, EVERY], ids=["dense", "experts"])
def test_a_token_is_multiplied_by_all_matrices_but_the_table_that_it_is_looked_up_in(config, gated, tied):
    architecture = Architecture(dataclasses.replace(config, gated=gated, tied_embeddings=tied, mlp_bias=False))
    shapes, axes = flat(architecture.shapes), flat(architecture.axes)
    matrices = {name: math.prod(leaf.shape) for name, leaf in shapes.items() if is_matrix(axes[name])}
    expected = sum(size for name, size in matrices.items() if tied or name != "embedding")
    assert matrix_parameters(architecture.config) == expected
    assert parameter_count(architecture.shapes) == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_a_token_costs_its_own_experts_and_the_shared_ones():
    cost = lambda **chosen: matrix_parameters(dataclasses.replace(EVERY, **chosen))  # noqa: E731
    expert = EVERY.layers * 3 * EVERY.width * EVERY.mlp_width
    assert cost(experts_per_token=2, shared_experts=4) - cost() == (2 + 4 - 5) * expert


def test_flops_are_two_for_each_multiply_add_and_three_passes():
    """The backward pass is two; attention multiplies each query with half of the keys on average, and mixes as many."""
    length = 4096
    matrices = 2 * matrix_parameters(CONFIG)
    attention = CONFIG.layers * CONFIG.heads * CONFIG.head_width * 2 * 2 * length / 2
    assert training_flops_per_token(CONFIG, length) == 3 * (matrices + attention)
