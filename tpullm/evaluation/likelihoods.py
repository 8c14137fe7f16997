"""How likely a model finds given continuations of given contexts: many at once, each beginning computed once.

Of sequences that begin alike, such as the choices of one question, a row holds the beginning but its last token, then a
branch for each: from that last token on, with the positions that follow the beginning. Segment ids keep the branches
apart (`data.batch.BRANCH`), as in rows of preferences. Groups of sequences stand side by side. Only the places that are
asked for are scored against the vocabulary.

Shapes: R rows, of which B are a batch, T tokens in a row, S predictions of a row that are scored, D model width.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from tpullm.data import packing
from tpullm.data.batch import BRANCH, Lengths
from tpullm.engine.session import Session, length_bucket, near_length, row_bucket
from tpullm.evaluation.scoring import dispatched
from tpullm.model.mesh import RULES
from tpullm.model.rows import fetch_whole, row_parts
from tpullm.training.log_probabilities import with_likeliest

SHORTEST_ROW = 512  # tokens: several questions share a row, so that there are few shapes and little padding
LARGEST_GROUP = 2048  # predictions of sequences that begin alike; in longer rows, attention costs as much as it saves

# At least one in so many predictions of a sequence is left out, or it stands alone: texts that happen to begin with the
# same word share no row, and rows without branches have faster attention on a GPU or a TPU.
WORTH_IT = 8

Ids = tuple[int, ...]


class Group(NamedTuple):
    """Sequences whose first `shared` tokens are the same: all of them but one at least, or all if it is one sequence.

    Args:
        shared: tokens.
        members: numbers of the sequences.
        size: predictions in a row: those of the beginning once, and those of each branch.
    """

    shared: int
    members: tuple[int, ...]
    size: int


class Rows(NamedTuple):
    """Rows of one length, with the longest groups first.

    Args:
        inputs, targets, segments, positions: int32 `[R, T]`.
        places: of each sequence here: its row, and the columns of its predictions.
        branched: whether a group has several sequences.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    places: dict[int, tuple[int, np.ndarray]]
    branched: bool


def group_by_beginning(sequences: Sequence[Ids]) -> list[Group]:
    """Distinct sequences of two tokens at least, in groups.

    A sequence joins the group of the one before it in lexical order if that leaves out a good part of its predictions,
    and if the group then has at most `LARGEST_GROUP`, or still fits the row that its longest sequence needs.
    """
    found: list[Group] = []
    for number in sorted(range(len(sequences)), key=sequences.__getitem__):
        length = len(sequences[number])
        if found and (joined := _join_group(found[-1], sequences, number)):
            found[-1] = joined
        else:
            found.append(Group(length, (number,), length - 1))
    return found


def _join_group(group: Group, sequences: Sequence[Ids], number: int) -> Group | None:
    """The group with one sequence more, if that is worth it."""
    ids, last = sequences[number], sequences[group.members[-1]]
    # A branch begins with the last token of the beginning and has one token more at least.
    most = min(group.shared, len(last) - 1, len(ids) - 1)
    alike = last[:most] == ids[:most]
    shared = most if alike else next(place for place in range(most) if last[place] != ids[place])
    members = (*group.members, number)
    lengths = [len(sequences[member]) for member in members]
    size = shared - 1 + sum(lengths) - len(members) * shared
    left_out = group.size + len(ids) - 1 - size
    if left_out * WORTH_IT < len(ids) - 1 or size > max(LARGEST_GROUP, length_bucket(max(lengths) - 1)):
        return None
    return Group(shared, members, size)


def lay_groups(sequences: Sequence[Ids], groups: Sequence[Group], worth: float = math.inf) -> list[Rows]:
    """All groups in rows, those of the longest rows first.

    Each length of rows is a program, so rows have powers of two. Beyond `SHORTEST_ROW` such a row holds one group, and
    a quarter of it is padding on average: a length of `near_length` is used too where it leaves out `worth` tokens.
    """
    lengths = [(max(SHORTEST_ROW, near_length(of.size)), max(SHORTEST_ROW, length_bucket(of.size))) for of in groups]
    by_length, waiting = {}, []
    for length in sorted({one for both in lengths for one in both}):
        waiting += [group for group, (near, _) in zip(groups, lengths, strict=True) if near == length]
        whole = length_bucket(length)
        if waiting and (length == whole or len(waiting) * (whole - length) >= worth):
            by_length[length], waiting = waiting, []
    return [_pack_groups(sequences, by_length[length], length) for length in sorted(by_length, reverse=True)]


def _pack_groups(sequences: Sequence[Ids], groups: list[Group], length: int) -> Rows:
    packed = packing.pack(Lengths.of(np.array([group.size for group in groups]) + 1), length, seed=0, moving=False)
    segments = packed.segments(np.arange(packed.rows), np.zeros(packed.rows, np.int64))
    inputs, targets, segment_ids, positions = (np.zeros((packed.rows, length), np.int32) for _ in range(4))
    used, numbers = np.zeros((2, packed.rows), np.int64)
    places = {}

    def put(row: int, ids: Ids, position: int, branch: int) -> np.ndarray:
        """Write ids whose first has this position; the columns of their predictions."""
        columns = used[row] + np.arange(len(ids) - 1)
        inputs[row, columns], targets[row, columns] = ids[:-1], ids[1:]
        segment_ids[row, columns] = numbers[row] + BRANCH * branch
        positions[row, columns] = position + np.arange(len(ids) - 1)
        used[row] += len(ids) - 1
        return columns

    for chosen, row in zip(segments.documents.tolist(), segments.rows.tolist(), strict=True):
        shared, members, _ = groups[chosen]
        numbers[row] += 1
        beginning = put(row, sequences[members[0]][:shared], 0, 0)
        if len(members) == 1:
            places[members[0]] = row, beginning
            continue
        for branch, member in enumerate(members, 1):
            columns = put(row, sequences[member][shared - 1 :], shared - 1, branch)
            places[member] = row, np.concatenate([beginning, columns])
    branched = any(len(group.members) > 1 for group in groups)
    return Rows(inputs, targets, segment_ids, positions, places, branched)


# Tokens of a batch on each part of the mesh. On two cores a token of 12 M parameters took as long in 2,048 as in 8,192.
# Of 135 M parameters, 2,048 tokens are 0.55 TFLOP, and a program is compiled in 2 s of one core.
TOKENS_ON_CPU, TOKENS = 2048, 16384


class Continuation(NamedTuple):
    """A request: how likely is `continuation` after `context`? Token ids; neither is empty."""

    context: Ids
    continuation: Ids


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether no token of it has a likelier one in its place."""

    log_probability: float
    is_likeliest: bool


def likelihoods(
    session: Session, requests: Sequence[Continuation], done: Callable[[dict[int, Likelihood]], None]
) -> None:
    """Score requests; `done` gets those of each batch, by their numbers. With several hosts, all of them call it.

    A result does not depend on the other requests, but for the roundings of arrays of another shape.

    Args:
        requests: with continuations that the context of the model holds.
    """
    # Without the tokens at its left that the model can't read. The last token is predicted and not read, so there may
    # be one more than its context holds. That is how the evaluation harness cuts.
    ids = [(*of.context, *of.continuation)[-(session.context_length + 1) :] for of in requests]
    same: dict[Ids, list[int]] = {}
    for number, of_request in enumerate(ids):
        same.setdefault(of_request, []).append(number)
    by_scaling: dict[int, list[Ids]] = {}
    worth = TOKENS_ON_CPU if _is_on_cpu(session) else math.inf
    for sequence in same:
        by_scaling.setdefault(_rope_scaling_for(session, len(sequence) - 1), []).append(sequence)
    for sequences in by_scaling.values():
        asked = [[(number, len(requests[number].continuation)) for number in same[of]] for of in sequences]
        for rows in lay_groups(sequences, group_by_beginning(sequences), worth):
            _score_rows(session, asked, rows, done)


def _is_on_cpu(session: Session) -> bool:
    return session.mesh.devices.flat[0].platform == "cpu"


def _rope_scaling_for(session: Session, length: int) -> int:
    """What decides the rotary frequencies of a text: the longest text of a batch does, so its texts have to agree."""
    scaling = session.architecture.config.rope_scaling
    if scaling.kind == "longrope":
        return int(length > scaling.original_context)
    return max(length, scaling.original_context) if scaling.kind == "dynamic" else 0


def _score_rows(session: Session, asked: list[list[tuple[int, int]]], rows: Rows, done: Callable) -> None:
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
        found = [rows.places[member][1][-max(most for _, most in asked[member]) :] for member in by_row[row]]
        scored.append(np.unique(np.concatenate(found)))
    # A quarter of the row, half of it, or all: the output table is the half of a small model.
    width = max(map(len, scored))
    width = next(part for part in (length // 8, length // 4, length // 2, length) if part >= width)
    columns_RS, targets_RS = np.zeros((2, count, width), np.int32)
    for row, of_row in enumerate(scored):
        columns_RS[row, : len(of_row)] = of_row
        targets_RS[row] = rows.targets[row][columns_RS[row]]
    arrays = (rows.inputs, rows.segments, rows.positions, columns_RS, targets_RS)
    most = row_parts(session.mesh) * max(1, (TOKENS_ON_CPU if _is_on_cpu(session) else TOKENS) // length)
    size = row_bucket(session, min(count, most))  # one of few numbers, so that few programs are compiled
    arrays = [np.pad(array, ((0, -count % size), (0, 0))) for array in arrays]  # the last batch has fewer rows
    parts = ([array[first : first + size] for array in arrays] for first in range(0, count, size))
    runs = (dispatched(session, _scored, *part, branched=rows.branched) for part in parts)
    # In pairs: a batch is dispatched before the one before it is looked at, so the device need not wait for the host.
    for batch, (found, _) in enumerate(itertools.pairwise(itertools.chain(runs, [None]))):
        log_p_BS, likeliest_BS = (fetch_whole(session.mesh, array) for array in found)
        first, results = batch * size, {}
        for row in range(first, min(first + size, count)):
            for member in by_row[row]:
                for number, last in asked[member]:
                    at = np.searchsorted(scored[row], rows.places[member][1][-last:])
                    sums = log_p_BS[row - first][at].astype(np.float64).sum(), likeliest_BS[row - first][at].all()
                    results[number] = Likelihood(float(sums[0]), bool(sums[1]))
        done(results)


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
