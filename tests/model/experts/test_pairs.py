"""Rows of pairs are sorted by expert, and what is added up of them goes back to their tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpullm.model.experts.exchange import combine, dispatch, sort_by_expert

M, k, E, D = 7, 3, 5, 4


def chosen():
    """Different experts for each token, and none for one of the experts."""
    random = np.random.default_rng(0)
    return jnp.asarray([random.permutation(E - 1)[:k] for _ in range(M)], jnp.int32)


def test_rows_are_sorted_by_expert_and_are_those_of_their_tokens():
    experts_Mk, pairs = chosen(), sort_by_expert(chosen())
    order, inverse = np.asarray(pairs.order), np.asarray(pairs.inverse)
    assert (np.diff(np.asarray(experts_Mk).reshape(-1)[order]) >= 0).all()
    np.testing.assert_array_equal(order[inverse], np.arange(M * k))
    of_token, of_pair = jnp.arange(M), jnp.arange(M * k)
    np.testing.assert_array_equal(dispatch(of_token, pairs, M), order // k)
    np.testing.assert_array_equal(dispatch(of_pair, pairs, M * k), order)


@pytest.mark.parametrize("dimensions", [(D,), (2, D)])
@pytest.mark.parametrize("some", [False, True])
def test_a_token_gets_the_sum_of_its_rows_that_are_used(some, dimensions):
    """In float32; the others may hold anything."""
    pairs = sort_by_expert(chosen())
    used = jnp.arange(M * k) % 4 != 0 if some else None
    x_RD = jax.random.normal(jax.random.key(0), (M * k, *dimensions)).astype(jnp.bfloat16)
    rows = np.asarray(x_RD, np.float32)[np.asarray(pairs.inverse)].reshape(M, k, *dimensions)
    if some:
        unused = np.asarray(pairs.inverse)[~np.asarray(used)]
        x_RD = x_RD.at[unused].set(jnp.nan)
        rows[~np.asarray(used).reshape(M, k)] = 0
    found = combine(x_RD, pairs._replace(used=used), M)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rows.sum(axis=1), rtol=1e-6, atol=1e-6)


def test_each_is_the_gradient_of_the_other():
    pairs, keys = sort_by_expert(chosen()), jax.random.split(jax.random.key(0), 2)
    x_MD, y_RD = jax.random.normal(keys[0], (M, D)), jax.random.normal(keys[1], (M * k, D))
    (of_dispatch,) = jax.vjp(lambda x: dispatch(x, pairs, M), x_MD)[1](y_RD)
    (of_combine,) = jax.vjp(lambda y: combine(y, pairs, M), y_RD)[1](x_MD)
    np.testing.assert_array_equal(of_dispatch, combine(y_RD, pairs, M))
    np.testing.assert_array_equal(of_combine, dispatch(x_MD, pairs, M))
    # In the type of what is differentiated, though the sum is in float32.
    (half,) = jax.vjp(lambda y: combine(y, pairs, M), y_RD.astype(jnp.bfloat16))[1](x_MD)
    assert half.dtype == jnp.bfloat16
