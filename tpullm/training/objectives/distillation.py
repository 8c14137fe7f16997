"""Learning from a teacher: what a larger model says of rows, and how far the student's distribution is from that.

A store keeps the teacher's K likeliest tokens alone. All other tokens are one more outcome. The divergence of these
K + 1 outcomes is at most that of the vocabulary (data processing), and the student learns how much the others have
together.

Shapes: B batch, T length, K tokens of the teacher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tpullm.data.batch import FIELDS, Batch, TaughtBatch
from tpullm.data.taught_rows import Kept
from tpullm.data.token_store import token_dtype
from tpullm.model.architecture import Architecture, Tree
from tpullm.model.rows import fetch_whole, put_rows, to_zigzag_order, zigzag_order
from tpullm.recipe.schema import TeacherConfig
from tpullm.system.cluster import hosts
from tpullm.system.log import progress
from tpullm.training.log_probabilities import likeliest_tokens, log_probabilities
from tpullm.training.losses import Sum, Sums, weighted_sum

jax.tree_util.register_dataclass(TaughtBatch, [*FIELDS, "ids", "logps"], ["settings", "branched"])
# Where the interpolation is between the two directions, for `distillation_loss`.
DIVERGENCES = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
IMPOSSIBLE = -1e4  # a log-probability whose exponential is 0 in float32; with -inf, gradients would be NaN


def distillation_loss(student_BTK, teacher_BTK, weights_BT, *, beta: float) -> dict[str, Sum]:
    """The mean divergence a token, and `kept`, the teacher's probability of its K tokens.

    Args:
        student_BTK, teacher_BTK: log-probabilities of the teacher's K tokens over the whole vocabulary, both at one
            temperature, which the store was made with. `-inf` in the teacher's is a place without a token.
        beta: 0 is KL(teacher | student), 1 is KL(student | teacher), between is the generalized Jensen-Shannon
            divergence (Agarwal et al. 2023, equation 1).
    """
    kept_BT = jax.lax.stop_gradient(jnp.exp(jax.nn.logsumexp(teacher_BTK, axis=-1)))
    losses_BT = divergence_from_teacher(student_BTK, teacher_BTK, beta)
    return {"loss": weighted_sum(losses_BT, weights_BT), "kept": weighted_sum(kept_BT, weights_BT)}


def divergence_from_teacher(student_BTK, teacher_BTK, beta: float):
    """The divergence at each token, nats, `[B, T]`; the gradient with respect to the teacher is 0."""
    known, both = teacher_BTK > -jnp.inf, (jax.lax.stop_gradient(teacher_BTK), student_BTK)
    teacher, student = map(_with_rest_of_probability, [jnp.where(known, logp, IMPOSSIBLE) for logp in both])
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p, q):
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _with_rest_of_probability(logp):
    """One more outcome with the probability that is left: 1e-7 at least, which is what float32 can tell from 0."""
    total = jnp.minimum(jax.nn.logsumexp(logp, axis=-1, keepdims=True), -1e-7)
    return jnp.concatenate([logp, jnp.log(-jnp.expm1(total))], axis=-1)


@dataclass(frozen=True)
class Teacher:
    """A model to learn from.

    Args:
        settings: of the objective.
        architecture: builds the model.
        load: reads its parameters, onto `mesh`.
        mesh: devices, those of the training.
        dtype: of matmuls.
        vocabulary: rows of the student's table. The teacher's may have more, which stand for no token.
        chunks: of a row, as in the loss.
    """

    settings: TeacherConfig
    architecture: Architecture
    load: Callable[[], Tree]
    mesh: Mesh
    dtype: Any
    vocabulary: int
    chunks: int = 0

    def says(self, params: Tree, batch: Batch, branched: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens at each place and their log-probabilities, `[B, T, K]`, on every host.

        Args:
            batch: this host's rows.
            branched: whether a row holds several answers to a prompt.
        """
        count = min(self.settings.top, self.architecture.config.vocabulary_size)
        options = (self.architecture, self.dtype, count, self.settings.temperature, self.chunks, branched)
        with jax.set_mesh(self.mesh):
            said = _said(*options, params, put_rows(self.mesh, batch))
            ids, logps = (undo_zigzag(self.mesh, array) for array in said)
        known = ids < self.vocabulary
        return np.where(known, ids, 0), np.where(known, logps, -np.inf)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _said(architecture, dtype, count, temperature, chunks, branched, params: Tree, batch: Batch):
    batch, model = jax.tree.map(to_zigzag_order, batch), architecture.model(params)
    out = model(batch.inputs, batch.segment_ids, batch.positions, dtype=dtype, branched=branched)
    options = count, architecture.config.logit_softcap, temperature, chunks
    with jax.named_scope("loss"):
        return likeliest_tokens(out.hidden, model.output_parameter(), *options)


def undo_zigzag(mesh: Mesh, x_BT: jax.Array) -> np.ndarray:
    """Rows that were computed in zigzag order, `[B, T, ...]`, on every host."""
    fetched = fetch_whole(mesh, x_BT)
    found = np.empty_like(fetched)
    found[:, zigzag_order(fetched.shape[1], mesh.shape["sequence"])] = fetched
    return found


def fill_from_teacher(teacher: Teacher, wanted: list[tuple[Kept, Callable[[int], Batch]]]) -> None:
    """Have the teacher say what is not kept yet, a file at a time, so a fill that was killed resumes.

    Args:
        wanted: what is to be kept, and of each of its files this host's rows.
    """
    missing = hosts.broadcast("what the teacher said", lambda: [kept.missing() for kept, _ in wanted])
    if not any(missing):
        return
    params = teacher.load()
    with progress("teacher", sum(map(len, missing)), "batches") as advance:
        for numbers, (kept, of_file) in zip(missing, wanted, strict=True):
            for number in numbers:
                ids, logps = teacher.says(params, of_file(number))
                hosts.on_first("the teacher", kept.write, number, ids.astype(token_dtype(teacher.vocabulary)), logps)
                advance(1)


def taught_loss(hidden_BTD, table_VD, batch: TaughtBatch, softcap: float, reduce_dtype: str, chunks: int):
    """The summed divergence from the teacher, and its `Sums`; the arguments are those of `cross_entropy`."""
    options = (softcap, batch.settings.temperature, reduce_dtype, chunks)
    student_BTK, _ = log_probabilities(hidden_BTD, table_VD, batch.ids, *options)
    sums = distillation_loss(student_BTK, batch.logps, batch.weights, beta=DIVERGENCES[batch.settings.kind])
    loss, weight = sums.pop("loss")
    return loss, Sums(loss, jnp.zeros_like(loss), weight, None, told=sums)
