"""A bad step changes nothing, and all later bits are those of a run whose update was left out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.eight_devices import printed
from tests.training.skipping import BAD, SKIP, STEPS, numbers, same_bits, toy_loss, trained
from tests.training.small import ARCHITECTURE, batch, mesh
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.training import step as step_module
from tpullm.training.optimizer.chain import open_window, skip_bad_steps


def spoiled(monkeypatch, factor, row):
    """Have the loss of the batches whose row `row` begins with token 0 multiplied, and so its gradient."""

    def loss(architecture, params, part, **options):
        total, sums = toy_loss(architecture, params, part)
        times = jnp.where(jnp.any(part.inputs[:, 0] == 95), factor, 1.0)
        return total * times, sums._replace(loss=sums.loss * times)

    monkeypatch.setattr(step_module, "batch_loss", loss)


def batches_with(row):
    made = [batch(rows=8, seed=seed) for seed in range(STEPS)]
    for number, one in enumerate(made):
        one.inputs[:, 0] = 0
        if number == BAD:
            one.inputs[row, 0] = 95
    return made


CASES = [(what, accumulation) for what in (float("nan"), float("inf"), 50.0) for accumulation in (1, 2)]
QUICK = CASES[-1]  # that what is not finite is skipped bit for bit is also held on eight devices, below


@pytest.mark.parametrize(
    "what, accumulation", [pytest.param(*case, marks=[pytest.mark.slow] * (case != QUICK)) for case in CASES]
)
def test_a_bad_gradient_is_skipped_bit_for_bit(monkeypatch, what, accumulation):
    """Of the whole batch, or of the second of two micro-batches (its rows are those of odd numbers)."""
    spoiled(monkeypatch, what, 1)
    config = TrainConfig(batch_size=8, accumulation=accumulation, optimizer=OptimizerConfig(skip=SKIP, warmup_steps=2))
    batches = batches_with(1)
    found = trained(ARCHITECTURE, config, batches, mesh())
    assert [int(metrics["skipped"]) for _, metrics in found] == [int(number == BAD) for number in range(STEPS)]
    assert int(found[-1][1]["updates"]) == STEPS - 1 and int(found[-1][0]["step"]) == STEPS
    left_out = trained(ARCHITECTURE, config, batches, mesh(), by_hand={BAD})
    for (one, _), (other, _) in zip(found, left_out, strict=True):
        assert same_bits(numbers(one), numbers(other))
    assert same_bits(found[BAD][0]["params"], found[BAD - 1][0]["params"])
    assert np.isfinite(found[-1][0]["optimizer"].losses).all() and found[-1][1]["loss"] < found[0][1]["loss"] * 2


@pytest.mark.ci
def test_bad_data_on_any_of_eight_devices_is_skipped_on_all():
    """A weight that is not finite, in the row of each device in turn; then a sound batch."""
    found = printed("tests.training.skipping")
    assert found == {bad: [[1, 2, 3, 4, 5, 6, 7, 8, 0], True] for bad in ("nan", "inf")}


@functools.cache
def of_one(config):
    """An optimizer of one parameter, compiled once: its fresh state and its update."""
    optimizer = skip_bad_steps(optax.sgd(1.0), config)
    return optimizer.init(jnp.zeros(1)), jax.jit(optimizer.update)


def judged(losses, norms=None, config=SKIP, updates=None):
    """How many steps in a row are skipped after each of these losses and gradient norms."""
    (state, update), params, found = of_one(config), jnp.zeros(1), []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        gradient = jnp.full(1, norm) * (1.0 if updates is None else updates)
        _, state = update(gradient, state, params, loss=jnp.float32(loss))
        found.append(int(state.skipped))
    return found, state


def test_a_spike_is_held_against_the_last_updates_only():
    """Window 8: the mean of the last ones is 2 +- 1, so 8 is the bound; what was skipped is never in the window."""
    before = [1.0, 3.0] * 4
    assert judged([*before, 7.9])[0][-1] == 0 and judged([*before, 8.1])[0][-1] == 1
    assert judged([*before, *[1000.0] * 20, 2.0])[0][-21:] == [*range(1, 21), 0], "20 spikes don't move the bound"
    assert judged([100.0] * 8 + before + [50.0])[0][-1] == 1, "losses of 100 have left the window"
    assert judged(before, norms=[1.0, 3.0] * 4)[0][-1] == 0
    assert judged([*before, 2.0], norms=[*before, 8.1])[0][-1] == 1, "the norm alone is enough"
    assert judged([*before, -1000.0])[0][-1] == 0, "a small loss is no spike"


def test_an_emptied_window_holds_new_losses_against_each_other():
    """Half of it has to be there again; the counters of updates and of skipped steps go on."""
    _, state = judged([1.0, 3.0] * 4)
    emptied = open_window(state)
    assert int(emptied.updates) == 8 and not np.isfinite([*emptied.losses, *emptied.norms]).any()
    update, found = of_one(SKIP)[1], []
    for loss in (20.0, np.inf, 22.0, 500.0, 20.0, 22.0, 20.0, 22.0, 20.0, 22.0, 20.0, 2000.0, 22.0):
        _, emptied = update(jnp.ones(1), emptied, jnp.zeros(1), loss=jnp.float32(loss))
        found.append(int(emptied.skipped))
    assert found == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_half_of_the_window_has_to_be_there_and_sixty_percent_are_no_spike():
    assert judged([1.0, 3.0, 1.0, 1000.0])[0] == [0, 0, 0, 0]
    assert judged([1.0, 3.0, 1.0, 3.0, 1000.0])[0] == [0, 0, 0, 0, 1]
    assert judged([2.0] * 4 + [3.21])[0][-1] == 1, "what of the window is not set yet does not count"
    assert judged([2.0] * 8 + [3.19])[0][-1] == 0 and judged([2.0] * 8 + [3.21])[0][-1] == 1


def test_what_is_not_finite_is_skipped_always_and_never_enters_the_window():
    off = dataclasses.replace(SKIP, deviations=0)
    for bad in (float("nan"), float("inf"), -float("inf")):
        found, state = judged([bad, 1.0, bad, bad, 1e30], config=off)
        assert found == [1, 0, 1, 2, 0] and int(state.updates) == 2
        assert state.losses.tolist() == [1.0, np.float32(1e30), *[0.0] * 6]
        assert judged([1.0], norms=[bad])[0] == [1]


def test_an_update_that_is_not_finite_is_skipped():
    update = lambda grads, state, params=None: (grads / 0.0, state + 1)  # noqa: E731
    optimizer = skip_bad_steps(optax.GradientTransformation(lambda params: jnp.zeros(()), update), SKIP)
    _, state = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)), jnp.zeros(1), loss=jnp.float32(1))
    assert int(state.skipped) == 1 and float(state.inner) == 0
