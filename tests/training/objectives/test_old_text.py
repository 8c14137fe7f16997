"""Old text beside preferences, judged answers, or answers that the model gave itself: its share of the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.objectives import test_judged, test_own_answers, test_pairs
from tests.training.small import ARCHITECTURE, batch, mesh, params
from tpullm.model.rows import put_rows
from tpullm.training.objectives.policy import METHODS, answer_count
from tpullm.training.step import accumulate_gradients, batch_loss, with_divergence, with_text_weights

F32, SHARE = jnp.dtype("float32"), 0.2
TEXT = batch(rows=2)


def some_answers(kind):
    """Rows of answers; no micro-batch of two has as many as the other."""
    if kind == "dpo":
        return test_pairs.made()[1].batch_at(0)
    if kind == "kto":
        return test_judged.made(count=7)[2].batch_at(0)
    return test_own_answers.made(kind)[3]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [pytest.param("kto", 2, marks=pytest.mark.ci), pytest.param("dapo", 2, marks=pytest.mark.slow)],
)
def test_loss_and_gradient_are_those_of_answers_and_of_text_by_their_shares_however_the_batch_is_cut(kind, parts):
    """The divergence of `kto` is that of the answers alone."""
    answers, text = put_rows(mesh(), (some_answers(kind), TEXT))
    mixed = dataclasses.replace(answers, beside=text, share=SHARE)

    def part(tree, batch, key):
        run = lambda tree: batch_loss(ARCHITECTURE, tree, batch, dtype=F32)  # noqa: E731
        (loss, sums), gradient = jax.value_and_grad(run, has_aux=True)(tree)
        return (loss, gradient), sums

    def cut(tree):
        batch = with_divergence(ARCHITECTURE, tree, with_text_weights(mixed), parts, F32, 0)
        found, sums = accumulate_gradients(part, parts, tree, batch, None)
        means = sums.loss / sums.weight, sums.told["text_loss"].total / sums.told["text_loss"].weight
        return jax.tree.map(lambda of: (1 - SHARE) * of / sums.weight, found), means

    def apart(tree):
        both = [batch_loss(ARCHITECTURE, tree, of, dtype=F32) for of in (answers, text)]
        means = [loss / sums.weight for loss, sums in both]
        return (1 - SHARE) * means[0] + SHARE * means[1], means

    with jax.set_mesh(mesh()):
        found, means = jax.jit(cut)(params())
        (loss, wanted_means), gradient = jax.jit(jax.value_and_grad(apart, has_aux=True))(params())
    np.testing.assert_allclose(means, wanted_means, rtol=1e-5, atol=1e-6)  # what is logged
    for one, other in zip(*map(jax.tree.leaves, (found, (loss, gradient))), strict=True):
        # Float32 sums of some hundred terms in another order.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(np.abs(other).max()))


@pytest.mark.parametrize("kind", METHODS)
def test_text_beside_own_answers_counts_by_what_their_loss_is_divided_by(kind):
    answers = some_answers(kind)
    assert answer_count(answers) == (answers.weights.sum() if kind == "dapo" else 12)
