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
        rows: which row, in ascending order.
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
        rows, lengths = segments.rows, segments.lengths
        tokens, token_weights = documents.read(segments.documents, segments.starts, lengths + 1)
        read, followed = np.ones((2, len(tokens)), bool)
        ends = np.cumsum(lengths + 1)
        read[ends - 1] = followed[ends - lengths - 1] = False
        in_row = np.bincount(rows)
        numbers = flat_ranges(np.ones_like(in_row), in_row)
        # A mask instead of the index of every token: a quarter of the memory to go through.
        real = np.arange(sequence_length) < np.bincount(rows, lengths, batch_size)[:, None]
        inputs[real], targets[real], weights[real] = tokens[read], tokens[followed], token_weights[followed]
        segment_ids[real] = np.repeat(numbers.astype(np.int32), lengths)
        positions[real] = flat_ranges(np.zeros_like(lengths), lengths)
    return Batch(inputs, targets, segment_ids, positions, weights)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Batches of equally many rows, in order; views of the given one."""
    arrays = (array.reshape(parts, -1, array.shape[1]) for array in vars(batch).values())
    return [Batch(*fields) for fields in zip(*arrays, strict=True)]


def flat_ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`begin, begin + 1, ..., begin + count - 1` for each pair, one after the other; int64."""
    return np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
