"""Rows reach the device of their expert, each in one round, and come back to their places; devices are simulated.

Rows of pairs are sorted by expert, and what is added up of them goes back to their tokens.

Shapes: X devices, R rows of one sorted by expert, E experts, G of one device, S rows that it can receive in a round; M
tokens with k experts each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice

from tests.model.experts.ragged import ragged_all_to_all
from tpullm.model.experts import exchange
from tpullm.model.experts.exchange import (
    all_to_all_dispatch,
    all_to_all_return,
    combine,
    dispatch,
    plan_round,
    received_sizes,
    round_capacity,
    round_count,
    sent_in_round,
    sort_by_expert,
)
from tpullm.model.mesh import RULES, planned_mesh

X, E, R, D = 3, 6, 12, 2
G = E // X
# How many rows of each device are for each expert.
LOADS = {
    "even": np.full((X, E), R // E),
    "uneven": np.array([[0, 5, 1, 2, 4, 0], [3, 0, 0, 0, 1, 8], [2, 2, 2, 2, 0, 4]]),
    "all to one device": np.array([[0, 0, 12, 0, 0, 0], [0, 0, 0, 12, 0, 0], [0, 0, 6, 6, 0, 0]]),
}


@pytest.fixture(params=["padded", "ragged"])
def ragged(request, monkeypatch) -> bool:
    """Whether devices send each other uneven numbers of rows; what is not written is not a number."""
    chosen = request.param == "ragged"
    monkeypatch.setattr(exchange, "has_ragged_all_to_all", lambda: chosen)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    nothing = lambda shape, *_: jnp.full(shape.shape, jnp.nan, shape.dtype)  # noqa: E731
    monkeypatch.setattr(exchange, "_uninitialized_buffer", nothing)
    return chosen


def on_devices(function, *arguments):
    """`function` on each of X devices along `expert`; all other axes have one."""
    mapped = jax.vmap(function, axis_name=RULES.experts)
    for axis in (*RULES.batch, RULES.time):
        if axis != RULES.experts:
            mapped = jax.vmap(mapped, in_axes=None, out_axes=None, axis_name=axis, axis_size=1)
    return mapped(*arguments)


@functools.cache
def exchanged(capacity: int, ragged: bool):
    """Of rows, loads and a round: what arrived, of which expert, what came back, what was sent, how many rounds."""

    def device(x_RD, sizes_E, number):
        counts_XE = jax.lax.all_gather(sizes_E, RULES.experts)
        planned = plan_round(counts_XE, number, capacity)
        x_SD = all_to_all_dispatch(x_RD, planned, R, capacity)
        back_RD = all_to_all_return(10 * x_SD, planned, R, capacity)
        sent_R = sent_in_round(planned, jnp.arange(R))
        return x_SD, received_sizes(planned), back_RD, sent_R, round_count(counts_XE, capacity)

    return jax.jit(lambda x_XRD, counts_XE, n: on_devices(lambda *of: device(*of, n), x_XRD, counts_XE))


@pytest.mark.parametrize("capacity", [6, 12, pytest.param(3 * R, marks=pytest.mark.slow)])  # the last: in one round
@pytest.mark.parametrize("loads", LOADS)
def test_every_row_is_sent_once_sorted_by_expert_and_comes_back(ragged, loads, capacity):
    counts_XE = LOADS[loads]
    values_XR1 = 1.0 + np.arange(X * R, dtype=np.float32).reshape(X, R, 1)  # each row has its own
    x_XRD = jnp.asarray(values_XR1 * np.ones(D, np.float32))
    expert_of = {
        float(values_XR1[device, row, 0]): expert
        for device in range(X)
        for row, expert in enumerate(np.repeat(np.arange(E), counts_XE[device]))
    }

    in_round = lambda n: map(np.asarray, exchanged(capacity, ragged)(x_XRD, counts_XE, n))  # noqa: E731
    *_, rounds = in_round(0)
    assert len(set(rounds.tolist())) == 1
    times_XR = np.zeros((X, R), int)
    for number in range(int(rounds[0])):
        arrived_XSD, groups_XG, back_XRD, sent_XR, _ = in_round(number)
        times_XR += sent_XR
        assert groups_XG.sum() == sent_XR.sum() and groups_XG.sum(axis=1).max() <= capacity
        found = []
        for device in range(X):
            experts = device * G + np.repeat(np.arange(G), groups_XG[device])
            rows = arrived_XSD[device, : len(experts), 0]
            assert [expert_of[float(row)] for row in rows] == experts.tolist()
            found += rows.tolist()
        assert sorted(found) == values_XR1[sent_XR].ravel().tolist()
        np.testing.assert_array_equal(back_XRD[sent_XR], 10 * np.asarray(x_XRD)[sent_XR])
    assert (times_XR == 1).all()
    *_, sent_XR, _ = in_round(int(rounds[0]))
    assert not sent_XR.any(), "no round is without need: the last one that is counted is the last that sends"
    *_, sent_XR, _ = in_round(int(rounds[0]) - 1)
    assert sent_XR.any()


def test_the_way_back_is_the_gradient_of_the_way_there_and_the_other_way_round(ragged):
    """Of rows that are sent in the round; what others hold is not read."""
    capacity, counts_XE = 12, jnp.asarray(LOADS["uneven"], jnp.int32)
    x_XRD = jax.random.normal(jax.random.key(0), (X, R, D))
    y_XSD = jax.random.normal(jax.random.key(1), (X, capacity, D))

    def device(x_RD, y_SD, sizes_E):
        planned = plan_round(jax.lax.all_gather(sizes_E, RULES.experts), 0, capacity)
        there = lambda x: all_to_all_dispatch(x, planned, R, capacity)  # noqa: E731
        back = lambda y: all_to_all_return(y, planned, R, capacity)  # noqa: E731
        sent_R1 = sent_in_round(planned, jnp.arange(R))[:, None]
        came_S1 = (jnp.arange(capacity) < received_sizes(planned).sum())[:, None]
        of_there, of_back = jax.vjp(there, x_RD)[1](y_SD)[0], jax.vjp(back, y_SD)[1](x_RD)[0]
        return [
            jnp.where(mask, a, 0) - jnp.where(mask, b, 0)
            for mask, a, b in ((sent_R1, of_there, back(y_SD)), (came_S1, of_back, there(x_RD)))
        ]

    for difference in jax.jit(lambda *of: on_devices(device, *of))(x_XRD, y_XSD, counts_XE):
        assert (np.asarray(difference) == 0).all()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 8, 64])
def test_a_round_holds_more_than_an_even_load_and_not_more_than_can_come(devices, ragged):
    """A quarter more where devices send uneven numbers; half more of what one sends another where they can't."""
    for rows, worst in ((1000, 1000), (1000, 3), (7, 7)):
        capacity = round_capacity(rows, worst, devices, ragged)
        assert capacity <= devices * worst
        if capacity < devices * worst:
            more = capacity / rows
            assert 1.25 <= more < 1.25 + 1 / rows if ragged else 1.5 <= more < 1.5 + devices / rows
        assert ragged or capacity % devices == 0


def test_which_devices_have_an_exchange_of_uneven_numbers():
    found = {}
    tpus = [(kind, "tpu") for kind in ("TPU v5", "TPU v5 lite", "TPU v6 lite")]
    for kind, platform in (*tpus, *((kind, "gpu") for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA L4", "a GPU"))):
        with jax.sharding.use_abstract_mesh(planned_mesh({}, 1, AbstractDevice(kind, 1, platform))):
            found[kind] = exchange.has_ragged_all_to_all(), exchange.contiguous_row(2048), exchange.contiguous_row(2000)
    assert found == {
        "TPU v5": (True, (8, 256), (2000,)),
        "TPU v5 lite": (False, (8, 256), (2000,)),
        "TPU v6 lite": (True, (8, 256), (2000,)),
        "NVIDIA H100 80GB HBM3": (True, (2048,), (2000,)),
        "NVIDIA L4": (False, (2048,), (2000,)),  # there is no NVLink
        "a GPU": (False, (2048,), (2000,)),
    }
    assert not exchange.has_ragged_all_to_all(), "without a mesh: this machine, a CPU"


M, k = 7, 3


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
