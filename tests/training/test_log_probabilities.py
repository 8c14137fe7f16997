"""Log-probabilities in chunks are the log-probabilities, and a table that is not trained costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tests.training.test_losses import TARGETS, assert_a_frozen_table_costs_less
from tpullm.model.mesh import RULES
from tpullm.training.log_probabilities import likeliest_tokens, log_probabilities, with_likeliest

B, T, D, V, K = 2, 12, 8, 37, 3


def inputs(seed: int = 0):
    """Hidden states, table, ids `[B, T, K]` without repeats, and what each log-probability and each entropy counts."""
    random = np.random.default_rng(seed)
    hidden, table = (random.normal(size=shape).astype(np.float32) for shape in ((B, T, D), (V, D)))
    ids = np.argsort(random.random((B, T, V)), axis=-1)[..., :K].astype(np.int32)
    return hidden, table, ids, random.normal(size=(B, T, K)), random.normal(size=(B, T))


def ours(hidden, table, ids, **options):
    hidden = jax.reshard(hidden, RULES.spec("batch", "time", "width"))
    table = jax.reshard(table, RULES.spec("vocabulary", "embed"))
    ids = jax.reshard(ids, RULES.spec("batch", "time", *[None] * (ids.ndim - 2)))
    return log_probabilities(hidden, table, ids, **options)


def plain(hidden, table, ids, softcap=0.0, temperature=1.0):
    """The definition, with all logits at once."""
    logits = jnp.einsum("btd,vd->btv", hidden, table)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)
    return jnp.take_along_axis(logp, ids, axis=-1), -jnp.sum(jnp.exp(logp) * logp, axis=-1)


@pytest.mark.parametrize(
    ("chunks", "asked", "softcap", "temperature"),
    [
        (3, 1, 2.0, 0.7),
        (4, 3, 0.0, 1.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 1, 0.0, 1.0), (12, 3, 2.0, 0.7)]),
    ],
)
def test_values_and_gradients_are_those_of_the_definition(chunks, asked, softcap, temperature):
    """With any cotangent. Float32 sums of 37 terms: 1e-5 is about 100 roundings."""
    hidden, table, ids, dlogp, dentropy = inputs()
    ids, dlogp = ids[..., :asked], dlogp[..., :asked]

    def weighted(found):
        return jnp.sum(found[0] * dlogp) + jnp.sum(found[1] * dentropy), found

    def of_ours(hidden, table):
        return weighted(ours(hidden, table, ids, softcap=softcap, temperature=temperature, chunks=chunks, entropy=True))

    def of_plain(hidden, table):
        return weighted(plain(hidden, table, ids, softcap, temperature))

    with jax.set_mesh(mesh()):
        (_, found), gradients = jax.jit(jax.value_and_grad(of_ours, (0, 1), has_aux=True))(hidden, table)
    (_, expected), expected_gradients = jax.jit(jax.value_and_grad(of_plain, (0, 1), has_aux=True))(hidden, table)
    for one, other in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_step_computes_the_bits_of_a_pass_without_gradients(dtype):
    """So the ratio of new to old log-probabilities is exactly 1 while the parameters are the same."""
    hidden, table, ids, *_ = inputs()
    hidden, targets = jnp.asarray(hidden, dtype), ids[..., 0]

    def loss(hidden, table):
        logp, entropy = ours(hidden, table, targets, entropy=True)
        return jnp.sum(logp), (logp, entropy)

    with jax.set_mesh(mesh()):
        _, found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(hidden, table)
        expected = jax.jit(lambda *a: ours(*a, targets, entropy=True))(hidden, table)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_likeliest_tokens_are_told_and_whether_a_token_is_one():
    """Of all logits; where targets are the likeliest tokens, and where they are any."""
    hidden, table, ids, *_ = inputs()
    every = np.broadcast_to(np.arange(V, dtype=np.int32), (B, T, V))
    expected, of_sampling = (np.asarray(plain(hidden, table, every, 2.0, temperature)[0]) for temperature in (1, 0.7))
    best = np.argsort(-expected, axis=-1)[..., :5]
    with jax.set_mesh(mesh()):
        hidden, table = jax.reshard(hidden, RULES.spec("batch", "time", "width")), jnp.asarray(table)
        found, logp = jax.jit(lambda *a: likeliest_tokens(*a, 5, softcap=2.0, temperature=0.7, chunks=3))(hidden, table)
        run = jax.jit(lambda *a: with_likeliest(*a, softcap=2.0, chunks=3))
        for targets in (best[..., 0], ids[..., 0]):
            said, is_likeliest = run(hidden, table, jax.reshard(targets.astype(np.int32), RULES.spec("batch", "time")))
            wanted = np.take_along_axis(expected, targets[..., None], axis=-1)[..., 0]
            np.testing.assert_allclose(said, wanted, rtol=1e-4)
            np.testing.assert_array_equal(is_likeliest, targets == best[..., 0])
    np.testing.assert_array_equal(found, best)
    np.testing.assert_allclose(logp, np.take_along_axis(of_sampling, best, axis=-1), rtol=1e-4)
    assert found.dtype == jnp.int32 and 0 < np.sum(ids[..., 0] == best[..., 0]) < B * T


def test_a_table_that_is_not_trained_costs_a_matmul_less():
    loss = lambda hidden, table: jnp.sum(ours(hidden, table, TARGETS, chunks=2)[0] ** 2)  # noqa: E731
    assert_a_frozen_table_costs_less(loss, frozen=3, trained=4)


def test_no_array_of_all_logits_exists():
    B, T, D, V = 8, 1024, 16, 32_000
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in [((B, T, D), "float32"), ((V, D), "float32"), ((B, T), "int32")]]

    def loss(hidden, table, targets):
        logp, entropy = ours(hidden, table, targets, entropy=True)
        return jnp.sum(logp**2) + jnp.sum(entropy)

    with jax.set_mesh(mesh()):
        program = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * B * T * V / 2
