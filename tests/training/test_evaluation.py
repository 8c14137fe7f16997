"""Held-out loss is a mean over all of a source's tokens, and bits per byte are over the bytes of the text."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import ARCHITECTURE, batch, mesh, params
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.training.evaluation import Evaluations, held_out_losses
from tpullm.training.losses import Sums
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import make_evaluation, make_step, with_params


def test_means_are_over_all_batches_of_a_source():
    """Of unequal weights: the mean is not that of the batches' means. An empty source has no loss."""
    sources = {"novels": [batch(seed=1), batch(rows=2, seed=2)], "tenki": [batch(seed=3)], "nothing": []}
    bytes_per_token = np.arange(96) % 5

    def evaluate(scale, b):  # a loss that differs from token to token
        nats = scale * jnp.sum(b.weights * b.targets)
        return Sums(nats, nats, jnp.sum(b.weights), nats)

    with jax.set_mesh(mesh()):
        found = held_out_losses(evaluate, 0.5, mesh(), sources, bytes_per_token)
    assert found.keys() == {"eval_loss", "eval_bits_per_byte"}
    assert found["eval_loss"]["nothing"] == found["eval_bits_per_byte"]["nothing"] == 0
    for source in ("novels", "tenki"):
        batches = sources[source]
        nats = sum(0.5 * float((b.weights * b.targets).sum()) for b in batches)
        tokens = sum(float(b.weights.sum()) for b in batches)
        text = sum(int(bytes_per_token[b.targets][b.weights > 0].sum()) for b in batches)
        np.testing.assert_allclose(found["eval_loss"][source], nats / tokens, rtol=1e-6)
        np.testing.assert_allclose(found["eval_bits_per_byte"][source], nats / math.log(2) / text, rtol=1e-6)


def test_a_token_of_any_weight_has_all_its_bytes():
    """Weights other than 1 count in the loss alone."""
    b = batch()
    halved = dataclasses.replace(b, weights=b.weights / 2)
    evaluate = lambda _, b: Sums(*[jnp.sum(b.weights)] * 4)  # noqa: E731
    with jax.set_mesh(mesh()):
        whole, half = (held_out_losses(evaluate, None, mesh(), {"a": [of]}, np.full(96, 3)) for of in (b, halved))
    assert whole["eval_loss"] == half["eval_loss"] == {"a": 1.0}
    assert whole["eval_bits_per_byte"]["a"] == 2 * half["eval_bits_per_byte"]["a"]


@pytest.mark.ci
def test_an_evaluation_needs_less_memory_than_the_step():
    """In the step's micro-batches. As a whole it would need more, and the last evaluation of a training would fail."""
    b = jax.tree.map(jnp.asarray, batch(rows=64))
    config = TrainConfig(batch_size=64, accumulation=8, optimizer=OptimizerConfig())
    with jax.set_mesh(mesh()):
        optimizer = make_optimizer(config.optimizer, 10, ARCHITECTURE.axes)
        state = with_params(params(), optimizer)
        step = make_step(ARCHITECTURE, optimizer, config, jnp.float32, seed=0).lower(state, b)
        parts, whole = (make_evaluation(ARCHITECTURE, jnp.float32, n).lower(params(), b) for n in (8, 1))
        bytes_of = [one.compile().memory_analysis().temp_size_in_bytes for one in (parts, step, whole)]
    assert bytes_of == sorted(bytes_of) and bytes_of[0] < bytes_of[2] / 4


@pytest.mark.parametrize(("before", "due"), [(None, [3, 6, 7]), (("base", 0, "identity"), [0, 3, 6, 7])])
def test_a_model_that_an_adapter_is_trained_beside_is_evaluated_before_the_first_step(before, due):
    job = SimpleNamespace(config=TrainConfig(steps=7, evaluate_every=3), answers=None, before=before)
    evaluations = Evaluations(job, None, None, None, None)
    assert [step for step in range(8) if evaluations.due(step)] == due
