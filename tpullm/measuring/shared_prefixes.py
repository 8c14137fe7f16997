"""Sequences of tokens as rows in which a common beginning stands once.

Of sequences that begin alike, such as the choices of one question, a row holds the beginning but its last token, then a
branch for each: from that last token on, with the positions that follow the beginning. Segment ids keep the branches
apart (`data.batch.BRANCH`), as in rows of preferences. Groups of sequences stand side by side.

Shapes: R rows, T tokens in a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tpullm.data import packing
from tpullm.data.batch import BRANCH
from tpullm.inference.padding import bucket

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
        places: of each sequence here: its row, the columns of the first predictions of beginning and branch, and how
            many predictions the beginning has.
        branched: whether a group has several sequences.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    places: dict[int, tuple[int, int, int, int]]
    branched: bool


def grouped(sequences: Sequence[Ids]) -> list[Group]:
    """Distinct sequences of two tokens at least, in groups.

    A sequence joins the group of the one before it in lexical order if that leaves out a good part of its predictions,
    and if the group then has at most `LARGEST_GROUP`, or still fits the row that its longest sequence needs.
    """
    found, current = [], Group(0, (), 0)
    for number in sorted(range(len(sequences)), key=sequences.__getitem__):
        ids = sequences[number]
        if current.members:
            joined = _joined(current, sequences, number)
            if joined:
                current = joined
                continue
            found.append(current)
        current = Group(len(ids), (number,), len(ids) - 1)
    return [*found, current] if current.members else found


def _joined(group: Group, sequences: Sequence[Ids], number: int) -> Group | None:
    """The group with one sequence more, if that is worth it."""
    ids, last = sequences[number], sequences[group.members[-1]]
    # A branch begins with the last token of the beginning and has one token more at least.
    most = min(group.shared, len(last) - 1, len(ids) - 1)
    shared = _common(last, ids, most)
    before, count = group.shared - 1, len(group.members)
    left_out = count * (shared - 1) - (count - 1) * before
    if left_out * WORTH_IT < len(ids) - 1:
        return None
    longest = max(len(ids), *(len(sequences[member]) for member in group.members))
    size = group.size + (count - 1) * (before - (shared - 1)) + len(ids) - 1 - (shared - 1)
    return Group(shared, (*group.members, number), size) if size <= max(LARGEST_GROUP, bucket(longest - 1)) else None


def _common(one: Ids, other: Ids, most: int) -> int:
    """How many tokens two sequences begin with alike, at most `most`."""
    if one[:most] == other[:most]:
        return most
    return next(place for place in range(most) if one[place] != other[place])


def row_length(predictions: int) -> int:
    """The length of the rows of sequences with so many predictions: one of few, so that few programs are compiled."""
    return max(SHORTEST_ROW, bucket(predictions))


def laid_out(sequences: Sequence[Ids], groups: Sequence[Group]) -> list[Rows]:
    """All groups in rows, those of the longest rows first."""
    by_length: dict[int, list[Group]] = {}
    for group in groups:
        by_length.setdefault(row_length(group.size), []).append(group)
    return [_rows(sequences, by_length[length], length) for length in sorted(by_length, reverse=True)]


def _rows(sequences: Sequence[Ids], groups: list[Group], length: int) -> Rows:
    packed = packing.pack(np.array([group.size for group in groups]) + 1, length, seed=0, moving=False)
    segments = packed.segments(np.arange(packed.rows), np.zeros(packed.rows, np.int64))
    inputs, targets, segment_ids, positions = (np.zeros((packed.rows, length), np.int32) for _ in range(4))
    used, numbers = np.zeros((2, packed.rows), np.int64)
    places = {}
    for chosen, row in zip(segments.documents.tolist(), segments.rows.tolist(), strict=True):
        group = groups[chosen]
        numbers[row] += 1
        first, before = int(used[row]), group.shared - 1
        parts = [(sequences[group.members[0]][: group.shared], 0)]
        parts += [(sequences[member][before:], before) for member in group.members] if len(group.members) > 1 else []
        for branch, (ids, position) in enumerate(parts):
            start = int(used[row])
            where = row, slice(start, start + len(ids) - 1)
            inputs[where], targets[where] = ids[:-1], ids[1:]
            segment_ids[where] = numbers[row] + BRANCH * branch
            positions[where] = position + np.arange(len(ids) - 1)
            used[row] += len(ids) - 1
            if branch:
                places[group.members[branch - 1]] = row, first, start, before
        if len(group.members) == 1:
            places[group.members[0]] = row, first, first, before
    branched = any(len(group.members) > 1 for group in groups)
    return Rows(inputs, targets, segment_ids, positions, places, branched)


def columns(place: tuple[int, int, int, int], length: int, count: int) -> np.ndarray:
    """The columns in which the last `count` tokens of a sequence of `length` tokens are predicted, int64."""
    _, first, branch, before = place
    number = np.arange(length - 1 - count, length - 1)
    return np.where(number < before, first + number, branch + number - before)
