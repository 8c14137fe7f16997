"""The residual stream: its scale at first, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.small import mesh
from tpullm.model.mlp import dropout, residual_scale


def test_what_all_layers_add_to_the_stream_has_the_variance_of_one_input():
    """Two additions a layer, each a sum of `inputs` terms of that deviation."""
    for inputs, layers in ((64, 1), (64, 12), (4096, 32)):
        np.testing.assert_allclose(2 * layers * inputs * residual_scale(inputs, layers) ** 2, 1.0)


def test_dropout_keeps_the_mean_and_needs_a_key_and_a_rate():
    x = jnp.full((100, 100), 3.0, jnp.bfloat16)
    with jax.set_mesh(mesh()):
        assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
        found = dropout(x, 0.25, jax.random.key(0))
    assert found.dtype == x.dtype and set(np.asarray(found, np.float32).ravel()) == {0.0, 4.0}
    # A share of 10,000 draws; one deviation is 0.0043.
    np.testing.assert_allclose((np.asarray(found) == 0).mean(), 0.25, atol=0.02)
