"""What is true of divergences from a teacher, whatever the numbers."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small import means
from tpullm.training.objectives.distillation import DIVERGENCES, distillation_loss, divergence_from_teacher

B, T, V = 2, 3, 11
SEEDS, BETAS = st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0])


def logps(seed):
    """Of a student and a teacher, over the whole vocabulary; the teacher's likeliest first."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (2, B, T, V)).astype(np.float32)
    student, teacher = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    order = np.argsort(-teacher, axis=-1)
    return [np.take_along_axis(x, order, axis=-1) for x in (student, teacher)]


@partial(jax.jit, static_argnums=2)
def differentiated(student, teacher, beta):

    def loss(*logps):
        found = divergence_from_teacher(*logps, beta)
        return found.sum(), found

    (_, found), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(student, teacher)
    return found, *gradients


def kept(teacher, count):
    """The teacher's likeliest tokens; the other places have none."""
    return np.where(np.arange(teacher.shape[-1]) < count, teacher, -np.inf)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, beta=BETAS)
def test_fewer_tokens_tell_less(seed, beta):
    """The divergence of K + 1 outcomes grows with K, up to that of the vocabulary.

    What is left is known to 1e-7, which is 1e-3 of it where it is 1e-4, so a divergence of several nats to that share.
    """
    student, teacher = logps(seed)
    found = np.array([differentiated(student, kept(teacher, count), beta)[0] for count in range(1, V + 1)])
    assert np.all(np.diff(found, axis=0) > -1e-3 * np.maximum(found[:-1], 1)) and np.all(found > -1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, beta=BETAS)
def test_a_student_like_its_teacher_is_left_alone(seed, beta):
    _, teacher = logps(seed)
    found, gradient, _ = differentiated(teacher, kept(teacher, 4), beta)
    np.testing.assert_allclose(found, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_places_without_a_token_are_nothing(beta):
    student, teacher = logps(0)
    before = differentiated(student, kept(teacher, 4), beta)
    after = differentiated(np.where(np.arange(V) < 4, student, -3.0), kept(teacher, 4), beta)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    found, of_student, of_teacher = after
    np.testing.assert_allclose(found, divergence_from_teacher(student[..., :4], teacher[..., :4], beta), rtol=1e-5)
    assert not np.any(of_student[..., 4:]) and np.any(of_student) and not np.any(of_teacher)


def test_the_mean_is_over_tokens_of_weight():
    student, teacher = (x[..., :3] for x in logps(1))
    weights = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    sums = distillation_loss(student, teacher, weights, beta=DIVERGENCES["jsd"])
    each = divergence_from_teacher(student, teacher, 0.5)
    found = means(sums)
    assert found["loss"] == pytest.approx(float(np.sum(each * weights) / 3), rel=1e-6)
    assert found["kept"] == pytest.approx(float(np.sum(np.exp(teacher).sum(-1) * weights) / 3), rel=1e-5)
