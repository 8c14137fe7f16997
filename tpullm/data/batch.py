"""The batch: what every kind of training reads, and how pieces of documents become one.

Shapes: B rows, T tokens in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Rows of tokens to predict; all `[B, T]`.

    Args:
        inputs: int32, the token that is read.
        targets: int32, the token that follows it in its document.
        segment_ids: int32, from 1 in each row; attention never crosses a segment; 0 is padding.
        positions: int32, the place within the segment, from 0.
        weights: float32, the weight of the target in the loss; 0 on padding.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


class Documents(Protocol):
    """Documents of tokens with random access: a token store, or conversations in memory."""

    lengths: np.ndarray  # int64 [documents], tokens of each
    ids: np.ndarray  # uint64 [documents], first 8 bytes of each document's hash

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of tokens `[start, start + count)` of each document, one after the other, flat."""
        ...


@dataclass(frozen=True)
class Segments:
    """Pieces of documents laid into rows, in the order of the rows; int64 `[segments]` each.

    Args:
        documents: which document.
        starts: its first token that is read.
        lengths: how many predictions; the tokens are one more.
        rows: which row.
    """

    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray


def build(parts: Sequence[tuple[Documents, Segments]], batch_size: int, sequence_length: int) -> Batch:
    """The batch of the segments of each source; the rows of all sources together are those of the batch.

    Rows that no segment names are padding. A row's segments come one after the other, and the rest is padding.
    """
    shape = (batch_size, sequence_length)
    inputs, targets, segment_ids, positions = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for documents, segments in parts:
        tokens, token_weights = documents.read(segments.documents, segments.starts, segments.lengths + 1)
        column = _exclusive_sum_within(segments.lengths, segments.rows)
        where = flat_ranges(segments.rows * sequence_length + column, segments.lengths)
        source = flat_ranges(np.cumsum(segments.lengths + 1) - segments.lengths - 1, segments.lengths)
        inputs.reshape(-1)[where] = tokens[source]
        targets.reshape(-1)[where] = tokens[source + 1]
        weights.reshape(-1)[where] = token_weights[source + 1]
        positions.reshape(-1)[where] = flat_ranges(np.zeros_like(segments.lengths), segments.lengths)
        number = 1 + _exclusive_sum_within(np.ones_like(segments.rows), segments.rows)
        segment_ids.reshape(-1)[where] = np.repeat(number, segments.lengths)
    return Batch(inputs, targets, segment_ids, positions, weights)


def flat_ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`begin, begin + 1, ..., begin + count - 1` for each pair, one after the other; int64."""
    return np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)


def _exclusive_sum_within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The sum of the values before each within its group; equal groups are neighbours."""
    before = np.cumsum(values) - values
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    return before - np.repeat(before[first], np.diff(first, append=len(groups)))
