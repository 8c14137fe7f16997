"""Objectives of a teacher: how far the student's next-token distribution is from the teacher's.

A store keeps the teacher's K likeliest tokens alone. What is left of the probability is handled in one of two ways:

    bucket   all other tokens are one more outcome. The divergence of these K + 1 outcomes is at most that of the
             vocabulary (data processing), and the student learns how much the others have together.
    dropped  both distributions are divided by their sums over the K tokens. Nothing is said about the others: a
             student may give them any probability.

Shapes: B batch, T length, K tokens of the teacher.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from tpullm.training.objectives.sums import Sum, weighted_sum

# Where the interpolation is between the two directions, for `distillation_loss`.
DIVERGENCES = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
IMPOSSIBLE = -1e4  # a log-probability whose exponential is 0 in float32; with -inf, gradients would be NaN


def distillation_loss(
    student_BTK, teacher_BTK, weights_BT, *, beta: float, rest: Literal["bucket", "dropped"] = "bucket"
) -> dict[str, Sum]:
    """The mean divergence a token, and `kept`, the teacher's probability of its K tokens.

    Args:
        student_BTK, teacher_BTK: log-probabilities of the teacher's K tokens over the whole vocabulary, both at one
            temperature. That of the teacher has to be there when the store is made, except with `rest: dropped`, where
            stored log-probabilities may be divided by it. `-inf` in the teacher's is a place without a token.
        beta: 0 is KL(teacher | student), 1 is KL(student | teacher), between is the generalized Jensen-Shannon
            divergence (Agarwal et al. 2023, equation 1).
    """
    kept_BT = jax.lax.stop_gradient(jnp.exp(jax.nn.logsumexp(teacher_BTK, axis=-1)))
    losses_BT = divergence(student_BTK, teacher_BTK, beta, rest)
    return {"loss": weighted_sum(losses_BT, weights_BT), "kept": weighted_sum(kept_BT, weights_BT)}


def divergence(student_BTK, teacher_BTK, beta: float, rest: str):
    """The divergence at each token, nats, `[B, T]`; the gradient with respect to the teacher is 0."""
    known = teacher_BTK > -jnp.inf
    teacher = jnp.where(known, jax.lax.stop_gradient(teacher_BTK), IMPOSSIBLE)
    student = jnp.where(known, student_BTK, IMPOSSIBLE)
    complete = _with_rest if rest == "bucket" else _renormalized
    teacher, student = complete(teacher), complete(student)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p, q):
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _with_rest(logp):
    """One more outcome with the probability that is left: 1e-7 at least, which is what float32 can tell from 0."""
    total = jnp.minimum(jax.nn.logsumexp(logp, axis=-1, keepdims=True), -1e-7)
    return jnp.concatenate([logp, jnp.log(-jnp.expm1(total))], axis=-1)


def _renormalized(logp):
    return logp - jax.nn.logsumexp(logp, axis=-1, keepdims=True)
