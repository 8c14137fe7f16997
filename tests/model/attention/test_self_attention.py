"""The attention layer: what its settings do to queries and keys before the kernel mixes the values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.small import CONFIG, batch, mesh
from tpullm.model.attention.plain import attend, causal_mask
from tpullm.model.attention.rope import rotary, rotary_table
from tpullm.model.attention.self_attention import Attention, LayerKind
from tpullm.model.mesh import RULES

KEYS = RULES.spec("batch", "kv_heads", None, "head")
SPEC = RULES.spec("batch", "time", "heads", "head")


def normalized(x, axes, scale):
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + CONFIG.norm_epsilon) * scale


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": "none"},
        {"qk_norm": "head"},
        {"qk_norm": "all"},
        {"qk_norm": "none", "positions": "none"},
        {"qk_norm": "none", "attention_scale": 0.7},
        {"qk_norm": "none", "qkv_bias": True, "out_bias": True, "sinks": True, "attention_softcap": 2.0},
    ],
    ids=lambda options: ", ".join(f"{key} {value}" for key, value in options.items()),
)
def test_the_layer_is_projections_norms_rotations_and_plain_attention(options):
    rotates = options.pop("positions", "rotary") == "rotary"
    config, b = dataclasses.replace(CONFIG, **options), batch(rows=2)
    x = jax.random.normal(jax.random.key(0), (2, 32, CONFIG.width))
    with jax.set_mesh(mesh()):
        layer = Attention(config, nnx.Rngs(0))
        for path, leaf in nnx.to_flat_state(nnx.split(layer)[1]):  # also what starts as 0 or 1
            random, module = np.random.default_rng(sum(map(ord, "".join(path)))), layer
            for part in path[:-1]:
                module = getattr(module, part)
            getattr(module, path[-1])[...] = leaf[...] + 0.1 * random.standard_normal(leaf.shape, np.float32)
        segments, positions = jax.reshard((b.segment_ids, b.positions), RULES.spec("batch", "time"))
        of_rows = lambda *own: (rotary_table(own[1], own[0], config, local=False), causal_mask(*own, *own))  # noqa: E731
        table, mask = jax.jit(of_rows)(segments, positions)
        table = table if rotates else None
        kind = LayerKind(table, mask, jnp.asarray(2**30), jnp.asarray(0))

        @jax.jit
        def computed(x):
            q, k, v = layer.projected(x, table)
            return layer(q, kind, *jax.reshard((k, v), (KEYS, KEYS)), segments, positions, "plain")

        found, weights = computed(x)

        value = lambda of: np.asarray(of[...], np.float64)  # noqa: E731
        bias = lambda of: 0.0 if of.bias is None else value(of.bias)  # noqa: E731
        times = lambda of: np.einsum("btd,dnh->btnh", x, value(of.weight)) + bias(of)  # noqa: E731
        q, k, v = times(layer.query), times(layer.key), times(layer.value)
        if config.qk_norm != "none":
            axes = (-1,) if config.qk_norm == "head" else (-2, -1)
            q, k = normalized(q, axes, value(layer.query_norm.scale)), normalized(k, axes, value(layer.key_norm.scale))
        if rotates:
            turned = lambda of: jax.jit(rotary)(jax.reshard(jnp.asarray(of, jnp.float32), SPEC), table)  # noqa: E731
            q, k = np.asarray(turned(q)), np.asarray(turned(k))
        q = q * (config.attention_scale or CONFIG.head_width**-0.5) * CONFIG.head_width**0.5
        k, v = jax.reshard([jnp.asarray(of.swapaxes(1, 2), jnp.float32) for of in (k, v)], [KEYS, KEYS])
        sinks = None if layer.sinks is None else layer.sinks[...]
        mixed, expected_weights = jax.jit(attend, static_argnums=4)(
            jax.reshard(jnp.asarray(q, jnp.float32), SPEC), k, v, mask, config.attention_softcap, sinks
        )
        expected = np.einsum("btnh,nhd->btd", mixed, value(layer.out.weight)) + bias(layer.out)
    np.testing.assert_allclose(weights, expected_weights, atol=2e-6)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_fresh_parameters_keep_the_variance_and_add_little_to_the_stream():
    config = dataclasses.replace(CONFIG, width=256, heads=8, kv_heads=4, head_width=32, qkv_bias=True, sinks=True)
    with jax.set_mesh(mesh()):
        layer, whole = (Attention(of, nnx.Rngs(0)) for of in (config, dataclasses.replace(config, qk_norm="all")))
    of = lambda part: np.asarray(part.weight[...])  # noqa: E731
    for part in (layer.query, layer.key, layer.value):
        np.testing.assert_allclose(of(part).std(), 1 / 16, rtol=0.02)  # of 32,768 numbers or more
        assert (np.asarray(part.bias[...]) == 0).all()
    np.testing.assert_allclose(of(layer.out).std(), 1 / 16 / np.sqrt(2 * config.layers), rtol=0.02)
    assert (np.asarray(layer.sinks[...]) == 0).all() and layer.out.bias is None
    assert layer.query_norm.scale.shape == layer.key_norm.scale.shape == (32,)
    assert whole.query_norm.scale.shape == (8, 32) and whole.key_norm.scale.shape == (4, 32)
