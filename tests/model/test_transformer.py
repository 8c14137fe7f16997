"""The model around its blocks: embeddings, kinds of layers, the cache, and the scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import CONFIG, batch, mesh, params
from tpullm.model.architecture import Architecture
from tpullm.model.attention.plain import causal_mask
from tpullm.model.mesh import RULES
from tpullm.model.transformer import logits

WINDOWS = dataclasses.replace(CONFIG, layers=3, windows=(3, 0, 3), local_rope_theta=50.0)


def rows():
    b = batch(rows=2)
    return jax.reshard((b.inputs, b.segment_ids, b.positions), RULES.spec("batch", "time"))


@pytest.mark.parametrize(("learned", "scaled"), [(True, True), (False, False)])
def test_a_vector_is_that_of_the_token_and_of_its_learned_position(learned, scaled):
    config = dataclasses.replace(CONFIG, positions="learned" if learned else "none", scale_embeddings=scaled)
    architecture = Architecture(config)
    tree = params(architecture=Architecture(dataclasses.replace(config, scale_embeddings=False)))
    with jax.set_mesh(mesh()):
        tokens, _, positions = rows()
        found = jax.jit(lambda *of: architecture.model(tree).embed(*of, jnp.float32))(tokens, positions)
    expected = np.asarray(tree["embedding"])[tokens] * (np.sqrt(config.width) if scaled else 1)
    assert ("position_embedding" in tree) == learned
    expected = expected + (np.asarray(tree["position_embedding"])[positions] if learned else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)  # sums of numbers of 0.1 may cancel


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_that_scores_is_the_embedding_or_its_own(tied):
    architecture = Architecture(dataclasses.replace(CONFIG, tied_embeddings=tied))
    tree = params(architecture=architecture)
    assert ("head" in tree) == (not tied)
    with jax.set_mesh(mesh()):
        table = jax.jit(lambda tree: architecture.model(tree).output_table(jnp.dtype("bfloat16")))(tree)
        parameter = architecture.model(tree).output_parameter()
    np.testing.assert_array_equal(parameter, tree["embedding" if tied else "head"])
    np.testing.assert_array_equal(table, parameter.astype(jnp.bfloat16))
    # Of 3,072 numbers: an embedding's deviation is 0.02, and a head keeps the variance of the residual stream.
    np.testing.assert_allclose(np.asarray(tree["embedding"]).std(), 0.02, rtol=0.05)
    assert tied or abs(np.asarray(tree["head"]).std() * np.sqrt(CONFIG.width) - 1) < 0.05


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_scores_are_inner_products_bounded_by_the_cap(softcap):
    hidden, table = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (11, 8))
    with jax.set_mesh(mesh()):
        spec = RULES.spec("batch", "time", "width")
        found = logits(jax.reshard(hidden, spec), jax.reshard(table, RULES.spec("vocabulary", None)), softcap)
    expected = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    expected = softcap * np.tanh(expected / softcap) if softcap else expected
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_fresh_layers_differ_and_unstacked_are_those_that_are_stacked():
    architecture = Architecture(WINDOWS)
    tree = params(architecture=architecture)
    query = np.asarray(tree["layers"]["attention"]["query"]["weight"])
    assert len({layer.tobytes() for layer in query}) == 3
    with jax.set_mesh(mesh()):
        unstacked = architecture.model(tree).unstacked()
    for number, leaves in enumerate(unstacked):
        for leaf, stacked in zip(leaves, jax.tree.leaves(tree["layers"]), strict=True):
            np.testing.assert_array_equal(leaf, stacked[number])


def test_weights_that_are_kept_are_those_of_every_kind_of_layer():
    """A layer with a window attends within it; keeping the weights changes no number but by roundings of float32."""
    architecture = Architecture(WINDOWS)
    tree = params(architecture=architecture)

    def run(keep):
        tokens, segments, positions = rows()
        return architecture.model(tree)(tokens, segments, positions, dtype=jnp.float32, keep_weights=keep)

    with jax.set_mesh(mesh()):
        kept, plain = jax.jit(run, static_argnums=0)(True), jax.jit(run, static_argnums=0)(False)
        _, *own = rows()
        masks = [np.asarray(causal_mask(*own, *own, window or None)) for window in WINDOWS.windows]
    assert plain.attention is None and kept.routing is None
    real = np.asarray(own[0]) > 0
    np.testing.assert_allclose(np.asarray(kept.hidden)[real], np.asarray(plain.hidden)[real], rtol=1e-4, atol=1e-5)
    K, G = CONFIG.kv_heads, CONFIG.heads // CONFIG.kv_heads
    assert kept.attention.shape == (3, 2, K, G, 32, 32)
    for weights, mask in zip(np.asarray(kept.attention), masks, strict=True):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        seen = np.broadcast_to(mask[:, None, None], weights.shape)
        assert (weights[~seen] == 0).all() and (weights[seen] > 0).all()
