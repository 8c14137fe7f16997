"""A block adds attention and then the feed-forward layer to the residual stream, normalized before or after them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.small import CONFIG, batch, mesh
from tpullm.model.attention.plain import causal_mask
from tpullm.model.attention.self_attention import LayerKind
from tpullm.model.block import Block
from tpullm.model.mesh import RULES


@pytest.mark.parametrize(("placement", "before", "after"), [("before", 1, 0), ("after", 0, 1), ("both", 1, 1)])
def test_a_block_is_two_additions_to_the_stream(placement, before, after):
    """Without rotations; the norms have other scales than 1, so that each of them counts."""
    config, b = dataclasses.replace(CONFIG, norm_placement=placement), batch(rows=2)
    with jax.set_mesh(mesh()):
        block = Block(config, nnx.Rngs(0))
        norms = {}
        for number, name in enumerate(("attention", "mlp")):
            for suffix, exists in (("_norm", before), ("_out_norm", after)):
                norm = getattr(block, name + suffix)
                assert (norm is not None) == bool(exists)
                if norm is not None:
                    norm.scale[...] = norm.scale[...] * (2.0 + number + len(suffix))
                norms[name + suffix] = norm or (lambda x: x)
        x = jax.random.normal(jax.random.key(0), (2, 32, config.width))
        x = jax.reshard(x, RULES.spec("batch", "time", "width"))
        own = jax.reshard((b.segment_ids, b.positions), RULES.spec("batch", "time"))
        kind = LayerKind(None, causal_mask(*own, *own), jnp.asarray(2**30), jnp.asarray(0))
        found, weights, routing = jax.jit(lambda x: block(x, kind, *own, "plain"))(x)

        @jax.jit
        def by_hand(x):
            normed = norms["attention_norm"](x)
            queries, keys, values = block.attention.projected(normed, None)
            whole = RULES.spec("batch", "kv_heads", None, "head")
            pair = jax.reshard((keys, values), (whole, whole))
            mixed, weights = block.attention(queries, kind, *pair, *own, "plain")
            middle = x + norms["attention_out_norm"](mixed)
            return middle + norms["mlp_out_norm"](block.mlp(norms["mlp_norm"](middle))), weights

        expected, expected_weights = by_hand(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    assert routing is None


def test_attention_and_the_feed_forward_layer_drop_by_keys_of_their_own():
    """Without a key nothing is dropped. What is added is 0 for the dropped numbers: of each part another share."""
    config = dataclasses.replace(CONFIG, dropout=0.5)
    b = batch(rows=2)
    with jax.set_mesh(mesh()):
        block = Block(config, nnx.Rngs(0))
        down = block.mlp.down.weight[...]
        block.mlp.down.weight[...] = jnp.zeros_like(down)
        x = jax.reshard(jnp.ones((2, 32, config.width)), RULES.spec("batch", "time", "width"))
        own = jax.reshard((b.segment_ids, b.positions), RULES.spec("batch", "time"))
        kind = LayerKind(None, causal_mask(*own, *own), jnp.asarray(2**30), jnp.asarray(0))
        of = lambda block, key: np.asarray(jax.jit(lambda x: block(x, kind, *own, "plain", key=key)[0] - x)(x))  # noqa: E731
        attention = of(block, jax.random.key(0)) == 0
        block.mlp.down.weight[...] = down
        block.attention.out.weight[...] = jnp.zeros_like(block.attention.out.weight[...])
        feed_forward = of(block, jax.random.key(0)) == 0
        assert (of(block, None) != 0).all()
    for dropped in (attention, feed_forward, attention != feed_forward):
        np.testing.assert_allclose(dropped.mean(), 0.5, atol=0.06)  # of 2,048 draws; five deviations
