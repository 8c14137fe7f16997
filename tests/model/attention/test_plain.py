"""Plain attention is the softmax over the keys that the mask allows, query by query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_linear import normal
from tests.training.small import batch, mesh
from tpullm.model.attention.plain import _attention_scores, attend, causal_mask
from tpullm.model.mesh import RULES

KEYS = RULES.spec("batch", "kv_heads", None, "head")


@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_token_attends_to_its_segment_up_to_itself_and_a_window_back(window):
    b = batch(rows=2, length=16)
    with jax.set_mesh(mesh()):
        rows = jax.reshard((b.segment_ids, b.positions), RULES.spec("batch", "time"))
        found = np.asarray(causal_mask(*rows, *rows, window))
    for row, query, key in np.ndindex(2, 16, 16):
        same = b.segment_ids[row, query] == b.segment_ids[row, key]
        back = b.positions[row, query] - b.positions[row, key]
        assert found[row, query, key] == (same and 0 <= back < (window or 16))


@pytest.mark.parametrize(
    ("T", "heads", "groups", "softcap", "sinks"),
    [(5, 3, 1, 0.0, False), (5, 4, 2, 1.5, True), (1, 8, 8, 0.0, False)],
)
def test_attention_is_its_formula(T, heads, groups, softcap, sinks):
    """Head n reads group n // (heads / groups); a sink is a key more, of value 0. In float64; float32 over 9 keys.

    A CPU sums in place of a matmul of one row where each head has a single query.
    """
    S, H = 9, 8
    q, k, v, sinks_N = normal((2, T, heads, H), *[(2, groups, S, H)] * 2, (heads,))
    sinks_N = sinks_N if sinks else None
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (2, T, S)).at[:, :, 0].set(True)
    with jax.set_mesh(mesh()):
        k, v = jax.reshard((k, v), (KEYS, KEYS))
        mask = jax.reshard(mask, RULES.spec("batch", "time", None))
        sinks_N = sinks_N if sinks_N is None else jax.reshard(sinks_N, RULES.spec("heads"))
        q_BTNH = jax.reshard(q, RULES.spec("batch", "time", "heads", "head"))
        mixed, weights = jax.jit(attend, static_argnums=4)(q_BTNH, k, v, mask, softcap, sinks_N)
    weights = np.asarray(weights).reshape(2, heads, T, S)
    for row, head, query in np.ndindex(2, heads, T):
        group = head // (heads // groups)
        scores = np.asarray(k, np.float64)[row, group] @ np.asarray(q, np.float64)[row, query, head] / np.sqrt(H)
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        powers = np.exp(scores) * np.asarray(mask)[row, query]
        expected = powers / (powers.sum() + (np.exp(float(sinks_N[head])) if sinks else 0))
        np.testing.assert_allclose(weights[row, head, query], expected, atol=1e-6)
        np.testing.assert_allclose(mixed[row, query, head], expected @ np.asarray(v)[row, group], atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "groups", "sinks"), [(4, 2, True), pytest.param(3, 3, False, marks=pytest.mark.slow)]
)
def test_answers_attend_to_a_shared_prompt_as_to_their_own_copy(heads, groups, sinks):
    """Three answers to each of two prompts. float32: the same sums in another order."""
    T, P, S, H = 2, 5, 4, 8
    q, *others = normal((6, T, heads, H), *[(2, groups, P, H)] * 2, *[(6, groups, S, H)] * 2)
    mask = jax.random.bernoulli(jax.random.key(5), 0.7, (6, T, P + S)).at[:, :, 0].set(True)
    with jax.set_mesh(mesh()):
        q = jax.reshard(q, RULES.spec("batch", "time", "heads", "head"))
        prompt_k, prompt_v, k, v = jax.reshard(tuple(others), (KEYS,) * 4)
        mask = jax.reshard(mask, RULES.spec("batch", "time", None))
        sinks_N = jax.reshard(jnp.ones(heads), RULES.spec("heads")) if sinks else None
        copied = [
            jnp.concatenate([jax.reshard(jnp.asarray(np.repeat(np.asarray(before), 3, axis=0)), KEYS), own], axis=2)
            for before, own in ((prompt_k, k), (prompt_v, v))
        ]
        jitted = jax.jit(attend, static_argnums=4)
        expected = jitted(q, *copied, mask, 1.5, sinks_N)
        found = jitted(q, k, v, mask, 1.5, sinks_N, [(prompt_k, prompt_v)])
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_scores_of_one_token_in_bfloat16_are_sums_of_exact_products():
    """Of rounded products they would be wrong by 1e-2; the order of a sum of 64 terms in float32 is worth 1e-6."""
    numbers = np.random.default_rng(0)
    q_BTKGH, k_BKSH = (numbers.normal(size=shape) for shape in ((3, 1, 2, 1, 64), (3, 2, 128, 64)))
    with jax.set_mesh(mesh()):
        q_BTKGH, k_BKSH = (jnp.asarray(array, jnp.bfloat16) for array in (q_BTKGH, k_BKSH))
        found = _attention_scores(q_BTKGH, k_BKSH)
    expected = np.einsum("btkgh,bksh->bkgts", np.asarray(q_BTKGH, float), np.asarray(k_BKSH, float)) / 8
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_row_has_the_same_bits_alone_and_among_others(rows):
    """With keys in parts, as cached ones are: XLA computes small arrays in another way than large ones."""
    rng = np.random.default_rng(0)
    q, *parts = (rng.normal(size=(1, *shape)).astype(np.float32) for shape in ((1, 6, 64), *[(6, 128, 64)] * 4))
    mask = np.ones((1, 1, 256), bool)

    @jax.jit
    def mixed(q_BTNH, keys, values, more_keys, more_values, mask_BTS):
        return attend(q_BTNH, more_keys, more_values, mask_BTS, before=[(keys, values)])[0]

    with jax.set_mesh(mesh()):
        few, many = (mixed(*(np.repeat(array, count, 0) for array in (q, *parts, mask))) for count in (rows, 12))
    assert np.array_equal(few, many[:rows])
