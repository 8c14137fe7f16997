import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpullm.engine.request import Request
from tpullm.engine.sampling import Next, choose, choose_next, likeliest, restrict_logits
from tpullm.model.rows import put_whole
from tpullm.recipe.sampling import GREEDY, Sampling

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 50)).astype(np.float32)
SETTINGS = [
    Sampling(1.0, 0, 1.0, 0.0),
    Sampling(0.5, 0, 1.0, 0.0),
    Sampling(1.0, 1, 1.0, 0.0),
    Sampling(1.0, 5, 1.0, 0.0),
    Sampling(1.0, 0, 0.7, 0.0),
    Sampling(1.0, 0, 1.0, 0.2),
    Sampling(2.0, 20, 0.8, 0.05),
    Sampling(1.0, 1, 0.01, 1.0),
]


def softmax(logits):
    p = np.exp(logits - logits.max())
    return p / p.sum()


def reference(logits, sampling):
    """One rule after the other, on one row, in plain numpy."""
    logits = logits.astype(np.float64) / sampling.temperature
    if sampling.top_k:
        logits[np.argsort(-logits)[sampling.top_k :]] = -np.inf
    kept, mass = [], 0.0
    for token in np.argsort(-logits):
        if mass < sampling.top_p:
            kept.append(token)
        mass += softmax(logits)[token]
    p = softmax(logits)
    kept = [token for token in kept if p[token] > 0 and p[token] >= sampling.min_p * p.max()]
    out = np.full_like(logits, -np.inf)
    out[kept] = logits[kept]
    return out


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_restrictions_are_those_of_the_reference(sampling):
    found = np.asarray(jax.jit(restrict_logits)(LOGITS, sampling))
    expected = np.stack([reference(row, sampling) for row in LOGITS])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_top_p_of_1_keeps_tokens_that_rounding_would_lose():
    """The first token has all of the probability that float32 can tell from 1."""
    logits = np.concatenate([[30.0], np.zeros(49)]).astype(np.float32)[None]
    found = np.asarray(jax.jit(restrict_logits)(logits, Sampling(1.0, 49, 1.0, 0.0)))
    assert np.isfinite(found).all()  # the 49th has as much as the 50th, and ties are kept


def choose_many(session, logits, sampling, seeds, positions):
    with jax.set_mesh(session.mesh):
        return np.asarray(jax.jit(choose)(jnp.asarray(logits), sampling, jnp.asarray(seeds), jnp.asarray(positions)))


def test_temperature_0_takes_the_likeliest(session):
    found = choose_many(session, LOGITS, GREEDY, np.zeros(4, np.uint32), np.zeros(4, np.int32))
    assert (found == LOGITS.argmax(axis=1)).all()


def test_samples_follow_the_distribution(session):
    """20,000 draws: a share p is off by about sqrt(p / 20,000) < 0.005; four of those are allowed."""
    draws, row = 20_000, LOGITS[0]
    logits = np.broadcast_to(row, (draws, len(row)))
    sampling = Sampling(1.0, 0, 1.0, 0.0)
    found = choose_many(session, logits, sampling, np.full(draws, 3, np.uint32), np.arange(draws, dtype=np.int32))
    shares = np.bincount(found, minlength=len(row)) / draws
    np.testing.assert_allclose(shares, softmax(row.astype(np.float64)), atol=0.02)


def test_the_next_token_has_the_seed_of_its_request_and_its_own_position(session):
    sampling, lengths, seeds = Sampling(2.0, 0, 1.0, 0.0), [3, 4, 3, 9], [7, 7, 8, 9]
    asked = [Next(Request((1,) * length, 9, sampling, seed), (5,)) for length, seed in zip(lengths, seeds, strict=True)]
    with jax.set_mesh(session.mesh):
        found = choose_next(session.mesh, put_whole(session.mesh, LOGITS, "batch", None), asked)
    positions = np.array(lengths, np.int32) + 1
    expected = choose_many(session, LOGITS, sampling, np.array(seeds, np.uint32), positions)
    assert np.asarray(found.tokens).tolist() == expected.tolist()


def test_a_choice_depends_on_its_seed_and_position_only(session):
    sampling = Sampling(2.0, 0, 1.0, 0.0)
    seeds, positions = np.array([7, 8, 7, 9], np.uint32), np.array([3, 3, 4, 3], np.int32)
    together = choose_many(session, LOGITS, sampling, seeds, positions)
    for row in range(4):
        alone = choose_many(session, LOGITS[row : row + 1], sampling, seeds[row : row + 1], positions[row : row + 1])
        assert alone[0] == together[row]


def test_the_likeliest_token_is_the_first_of_the_highest():
    logits = np.array([[1, 5, 5, 2], [-np.inf, -np.inf, -np.inf, 3], [-np.inf] * 4, [np.nan, 1, 2, 3]], np.float32)
    found = np.asarray(likeliest(jnp.asarray(logits)))
    assert found.tolist() == [1, 3, 0, 3] and found.dtype == np.int32  # of no numbers one that there is
