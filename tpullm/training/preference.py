"""The loss of a batch of preferences or of judged answers, and the references that it is compared with.

Shapes: B batch, T length, S pairs in a row at most.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.data import packing
from tpullm.data.answer_rows import BAD, GOOD, MISMATCHED, Pairs
from tpullm.data.batch import BRANCH, PairBatch
from tpullm.model.architecture import Architecture
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import fetch, own_rows, put, to_zigzag_order
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.log import progress
from tpullm.training.job import Job
from tpullm.training.log_probabilities import log_probabilities
from tpullm.training.losses import Sums
from tpullm.training.objectives.preferences import PAIRED, Answers, kto, kto_kl
from tpullm.training.objectives.sums import Sum, sum_by_sequence, weighted_sum

Tree = Any
FILE = "references.npz"  # in a stage that learns preferences

jax.tree_util.register_dataclass(
    PairBatch,
    ["inputs", "targets", "segment_ids", "positions", "weights", "references", "kl", "beside"],
    ["settings", "sequences", "share"],
)


def answers(architecture: Architecture, params: Tree, batch: PairBatch, *, dtype, chunks=0, key=None):
    """The answers of each pair, `[B, S]`: chosen and rejected ones, and mismatched ones if they are judged.

    Where there is none it has no tokens.
    """
    config, batch = architecture.config, jax.tree.map(to_zigzag_order, batch)
    model = architecture.model(params)
    out = model(batch.inputs, batch.segment_ids, batch.positions, dtype=dtype, key=key, branched=True)
    with jax.named_scope("loss"):
        table, more = model.output_parameter(), (config.logit_softcap, 1.0, config.gradients, chunks)
        logp_BT, _ = log_probabilities(out.hidden, table, batch.targets, *more)
        found = []
        for branch in (GOOD, BAD, MISMATCHED) if batch.settings.kind == "kto" else (GOOD, BAD):
            own_BT = jnp.where(batch.segment_ids // BRANCH == branch, batch.segment_ids % BRANCH, 0)
            columns = logp_BT * batch.weights, batch.weights, batch.references
            policy, tokens, reference = (sum_by_sequence(of, own_BT, batch.sequences) for of in columns)
            found.append(Answers(policy, tokens, reference))
    return found


def pair_loss(architecture: Architecture, params: Tree, batch: PairBatch, *, dtype, chunks=0, key=None):
    """The summed loss of a batch of pairs, and its `Sums`, whose weight is the number of pairs.

    `correct` counts the pairs whose chosen answer has the higher reward, and the judged answers that are judged right.
    """
    found = answers(architecture, params, batch, dtype=dtype, chunks=chunks, key=key)
    sums = (_judged if batch.settings.kind == "kto" else _paired)(batch, *found)
    loss, weight = sums.pop("loss")
    correct = sums.pop("accuracy").total
    return loss, Sums(loss, jnp.zeros_like(loss), weight, correct, told=sums)


def pair_count(batch: PairBatch):
    """What the loss of a whole batch is divided by: the number of its pairs or judged answers."""
    return jnp.sum(jnp.max(batch.segment_ids % BRANCH, axis=1))


def divergence(architecture: Architecture, params: Tree, batch: PairBatch, *, dtype, chunks=0, key=None) -> Sum:
    """What KTO's `kl` is the mean of, of a part of the batch."""
    good, bad, mismatched = answers(architecture, params, batch, dtype=dtype, chunks=chunks, key=key)
    return kto_kl(mismatched, (good.tokens + bad.tokens > 0).astype(jnp.float32))


def _judged(batch: PairBatch, good: Answers, bad: Answers, mismatched: Answers) -> dict[str, Sum]:
    settings = batch.settings
    each = Answers(*(one + other for one, other in zip(good, bad, strict=True)))  # one of the two has no tokens
    weights = (each.tokens > 0).astype(jnp.float32)
    if batch.kl is None:
        total, count = kto_kl(mismatched, weights)
        kl = total / jnp.maximum(count, 1)
    else:
        kl = jnp.max(batch.kl)
    by_sort = {"desirable_weight": settings.desirable_weight, "undesirable_weight": settings.undesirable_weight}
    sums = kto(each, good.tokens > 0, weights, beta=settings.beta, kl=kl, **by_sort)
    return sums | {"kl": weighted_sum(jnp.full_like(weights, jax.lax.stop_gradient(kl)), weights)}


def _paired(batch: PairBatch, chosen: Answers, rejected: Answers) -> dict[str, Sum]:
    settings = batch.settings
    if not settings.needs_reference:
        chosen, rejected = chosen._replace(reference=None), rejected._replace(reference=None)
    weights = (chosen.tokens > 0).astype(jnp.float32)
    more = {"beta": settings.beta}
    if settings.kind == "dpo":
        more |= {"label_smoothing": settings.label_smoothing, "per_token": settings.per_token}
    if settings.kind == "simpo":
        more |= {"gamma": settings.gamma}
    if settings.kind == "orpo":
        more |= {"nll": -chosen.policy / jnp.maximum(chosen.tokens, 1)}
    return PAIRED[settings.kind](chosen, rejected, weights, **more)


def fill_references(job: Job, parts: Sequence[Pairs]) -> None:
    """Compute the references of all answers once, by the model that tuning starts from, and keep them in the stage.

    Args:
        parts: whose `references` are filled. `job.load` reads the model's parameters, which are held for this time
            alone.
    """
    if not any(part.settings.needs_reference for part in parts):
        return
    file = job.directory / FILE
    if hosts.broadcast("references", file.exists):
        with storage.local_copy(file).open("rb") as opened:
            found = list(np.load(opened).values())
    else:
        found = _references(job, parts)
        hosts.on_first("references", _write, file, found)
    for part, values in zip(parts, found, strict=True):
        part.references[:] = values


def _write(file: Path, found: Sequence[np.ndarray]) -> None:
    with storage.atomic_file(file) as temporary, open(temporary, "wb") as opened:
        np.savez(opened, *found)


def _references(job: Job, parts: Sequence[Pairs]) -> list[np.ndarray]:
    """Of each part `[answers of a pair, pairs]`, computed in micro-batches of the training."""
    mesh, config, architecture = job.mesh, job.config, Architecture(job.model)
    count, length = config.batch_size // config.accumulation, config.sequence_length
    options = {"dtype": compute_dtype(config.compute), "chunks": config.loss_chunks}
    run = jax.jit(lambda *of: jnp.stack([found.policy for found in answers(architecture, *of, **options)]))
    found, own = [], own_rows(mesh, count)
    with jax.set_mesh(mesh), progress("references", sum(len(part.ids) for part in parts), "pairs") as advance:
        params = job.load()
        for part in parts:
            values = np.zeros_like(part.references)
            packed = packing.pack(part.lengths, length, seed=0, moving=False)
            for first in range(0, packed.rows, count):
                rows = np.arange(first, min(first + count, packed.rows))
                segments = packed.segments(rows, np.zeros_like(rows))
                mine = jax.tree.map(lambda array: array[own], part.build(segments, count, length))
                sums = fetch(mesh, run(params, put(mesh, mine)))
                slots = np.concatenate([np.arange(pairs) for pairs in np.bincount(segments.rows)])
                values[segments.documents] = sums[:, segments.rows, slots].T
                advance(len(segments.documents))
            found.append(values)
    return found
