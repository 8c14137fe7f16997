"""How likely a model finds given continuations of given contexts: many at once, each beginning computed once.

Shapes: B rows, T tokens in a row, S predictions of a row that are scored, D model width.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from tpullm.inference.padding import row_bucket
from tpullm.inference.session import Session
from tpullm.measuring.shared_prefixes import Ids, Rows, columns, grouped, laid_out
from tpullm.mesh.layout import RULES
from tpullm.mesh.rows import fetch, put_whole, row_parts
from tpullm.training.log_probabilities import with_likeliest

# Tokens of a batch on each part of the mesh. On two cores a token of 12 M parameters took as long in 2,048 as in 8,192.
TOKENS_ON_CPU, TOKENS = 2048, 16384


class Continuation(NamedTuple):
    """A request: how likely is `continuation` after `context`? Token ids; neither is empty."""

    context: Ids
    continuation: Ids


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether no token of it has a likelier one in its place."""

    log_probability: float
    is_likeliest: bool


def cut(request: Continuation, most: int) -> Ids:
    """The tokens of a request, without those at its left that a model of `most` tokens can't read.

    The last token is predicted and not read, so there may be one more. That is how the evaluation harness cuts.
    """
    return (*request.context, *request.continuation)[-(most + 1) :]


def likelihoods(
    session: Session, requests: Sequence[Continuation], done: Callable[[dict[int, Likelihood]], None]
) -> None:
    """Score requests; `done` gets those of each batch, by their numbers. With several hosts, all of them call it.

    A result does not depend on the other requests, but for the roundings of arrays of another shape.

    Args:
        requests: with continuations that the context of the model holds.
    """
    ids = [cut(request, session.context_length) for request in requests]
    same: dict[Ids, list[int]] = {}
    for number, of_request in enumerate(ids):
        same.setdefault(of_request, []).append(number)
    by_scaling: dict[int, list[Ids]] = {}
    for sequence in same:
        by_scaling.setdefault(_scaling(session, len(sequence) - 1), []).append(sequence)
    for sequences in by_scaling.values():
        asked = [[(number, len(requests[number].continuation)) for number in same[of]] for of in sequences]
        for rows in laid_out(sequences, grouped(sequences)):
            _score(session, sequences, asked, rows, done)


def _scaling(session: Session, length: int) -> int:
    """What decides the rotary frequencies of a text: the longest text of a batch does, so its texts have to agree."""
    scaling = session.architecture.config.rope_scaling
    if scaling.kind == "longrope":
        return int(length > scaling.original_context)
    return max(length, scaling.original_context) if scaling.kind == "dynamic" else 0


def _score(session: Session, sequences, asked, rows: Rows, done) -> None:
    """Score the requests whose sequences are in these rows.

    Args:
        asked: of each sequence, the numbers of its requests and how many of its last tokens each asks for.
    """
    count, length = rows.inputs.shape
    by_row: list[list[int]] = [[] for _ in range(count)]
    for sequence, place in rows.places.items():
        by_row[place[0]].append(sequence)
    scored = []
    for row in range(count):
        found = [
            columns(rows.places[member], len(sequences[member]), max(most for _, most in asked[member]))
            for member in by_row[row]
        ]
        scored.append(np.unique(np.concatenate(found)))
    # A quarter of the row, half of it, or all: the output table is the half of a small model.
    width = max(map(len, scored))
    width = next(part for part in (length // 8, length // 4, length // 2, length) if part >= width)
    columns_RS, targets_RS = np.zeros((2, count, width), np.int32)
    for row, of_row in enumerate(scored):
        columns_RS[row, : len(of_row)] = of_row
        targets_RS[row] = rows.targets[row][columns_RS[row]]
    arrays = (rows.inputs, rows.segments, rows.positions, columns_RS, targets_RS)
    size = _batch_rows(session, count, length)
    parts = ([_filled(array[first : first + size], size) for array in arrays] for first in range(0, count, size))
    dispatched = (_run(session, part, rows.branched) for part in parts)
    # In pairs: a batch is dispatched before the one before it is looked at, so the device need not wait for the host.
    for batch, (found, _) in enumerate(itertools.pairwise(itertools.chain(dispatched, [None]))):
        log_p_BS, likeliest_BS = (fetch(session.mesh, array) for array in found)
        first, results = batch * size, {}
        for row in range(first, min(first + size, count)):
            for member in by_row[row]:
                for number, last in asked[member]:
                    at = np.searchsorted(scored[row], columns(rows.places[member], len(sequences[member]), last))
                    sums = log_p_BS[row - first][at].astype(np.float64).sum(), likeliest_BS[row - first][at].all()
                    results[number] = Likelihood(float(sums[0]), bool(sums[1]))
        done(results)


def _batch_rows(session: Session, rows: int, length: int) -> int:
    """How many rows to compute at a time: one of few numbers, so that few programs are compiled."""
    on_cpu = session.mesh.devices.flat[0].platform == "cpu"
    most = row_parts(session.mesh) * max(1, (TOKENS_ON_CPU if on_cpu else TOKENS) // length)
    return row_bucket(session, min(rows, most))


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(array, ((0, rows - len(array)), (0, 0)))


def _run(session: Session, arrays: list[np.ndarray], branched: bool) -> tuple[jax.Array, jax.Array]:
    """Dispatch the scoring of a batch."""
    with jax.set_mesh(session.mesh):
        placed = [put_whole(session.mesh, array, "batch", "time") for array in arrays]
        return _scored(session.architecture, session.params, *placed, dtype=session.dtype, branched=branched)


@partial(jax.jit, static_argnames=("architecture", "dtype", "branched"))
def _scored(architecture, params, inputs_BT, segments_BT, positions_BT, columns_BS, targets_BS, *, dtype, branched):
    """The log-probability of each scored target, `[B, S]` float32, and whether none is likelier, `[B, S]`."""
    model = architecture.model(params)
    hidden_BTD = model(inputs_BT, segments_BT, positions_BT, dtype=dtype, branched=branched).hidden
    take = jax.shard_map(_take, out_specs=RULES.spec("batch", "time", "width"))
    table, softcap = model.output_parameter(), architecture.config.logit_softcap
    return with_likeliest(take(hidden_BTD, columns_BS), table, targets_BS, softcap)


def _take(hidden_BTD, columns_BS):
    """The hidden states at some columns of each row, `[B, S, D]`."""
    return jax.numpy.take_along_axis(hidden_BTD, columns_BS[..., None], axis=1)
