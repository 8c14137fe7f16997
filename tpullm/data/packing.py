"""Packing: documents side by side in rows of T predictions; documents that are longer than a row are cut.

A document of n tokens holds n - 1 predictions. A document of at most T predictions is never cut. A longer one is cut
into pieces of T predictions and a rest. The grid of cuts moves from epoch to epoch, so that no token always stands at
the beginning of its piece, without context.
"""

from dataclasses import dataclass

import numpy as np

from tpullm.corpus.dedup import GOLDEN, splitmix64
from tpullm.data.batch import Segments, flat_ranges


@dataclass(frozen=True)
class Packing:
    """The pieces of each row, sorted by row. `int` is int32 if all values fit, else int64.

    Args:
        documents: int [pieces], the document of each piece.
        offsets: int [pieces], the first prediction of each piece on the unmoved grid.
        lengths: int [pieces], the predictions of each piece.
        row_starts: int64 [rows + 1], the first piece of each row.
        tokens: int64 [documents], the tokens of each document.
        sequence_length: T.
        seed: moves the grid of cuts; None leaves the grid unmoved.
    """

    documents: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    row_starts: np.ndarray
    tokens: np.ndarray
    sequence_length: int
    seed: int | None

    @property
    def rows(self) -> int:
        """The number of rows in an epoch."""
        return len(self.row_starts) - 1

    @property
    def fill(self) -> float:
        """The share of positions that hold a prediction."""
        return float(self.lengths.sum()) / max(1, self.rows * self.sequence_length)

    def segments(self, rows: np.ndarray, epochs: np.ndarray) -> Segments:
        """The pieces of `rows` (int64 [n]) in `epochs` (int64 [n]). The result numbers the rows from 0 to n - 1.

        A long document is a ring: the hash of seed, epoch and document says where its grid begins. The number and the
        lengths of its pieces do not change. The piece that contains the end of the document becomes two segments.
        """
        counts = self.row_starts[rows + 1] - self.row_starts[rows]
        piece = flat_ranges(self.row_starts[rows], counts)
        pieces = (self.documents, self.offsets, self.lengths)
        documents, starts, lengths = (array[piece].astype(np.int64) for array in pieces)
        predictions = self.tokens[documents] - 1
        if self.seed is not None:
            hashes = documents.astype(np.uint64)  # of document, epoch and seed
            for salt in (np.repeat(epochs, counts).astype(np.uint64), np.uint64(self.seed % 2**64)):
                hashes = splitmix64(hashes * GOLDEN + salt)
            shift = (hashes % predictions.astype(np.uint64)).astype(np.int64)
            starts = (starts + np.where(predictions > self.sequence_length, shift, 0)) % predictions
        first = np.minimum(lengths, predictions - starts)
        rows = np.repeat(np.arange(len(rows)), counts)
        to_end, from_begin = (documents, starts, first, rows), (documents, 0 * starts, lengths - first, rows)
        segments = np.stack([to_end, from_begin], axis=2).reshape(4, -1)
        return Segments(*segments[:, segments[2] > 0])


def pack(lengths: np.ndarray, sequence_length: int, seed: int, moving: bool = True) -> Packing:
    """Pack documents of `lengths` tokens (int64 [documents]) into rows of `sequence_length` predictions.

    Best fit, longest first, on the histogram of lengths (Krell et al. 2021, "Efficient Sequence Packing without
    Cross-contamination", section 3). The cost grows with the number of distinct lengths, and documents are assigned to
    rows by whole arrays. Documents of fewer than two tokens hold no prediction and are left out. `seed` decides which
    documents share a row. If `moving`, the cuts of long documents move from epoch to epoch.
    """
    lengths = np.asarray(lengths, np.int64)
    predictions = np.maximum(lengths - 1, 0)
    pieces = -(-predictions // sequence_length)
    documents = _in_fewest_bytes(np.repeat(np.arange(len(lengths)), pieces))
    offsets = _in_fewest_bytes(flat_ranges(np.zeros_like(pieces), pieces) * sequence_length)
    piece_lengths = _in_fewest_bytes(np.minimum(sequence_length, predictions[documents] - offsets))
    shuffled = np.random.default_rng(seed).permutation(len(documents))
    keys = piece_lengths[shuffled].astype(np.min_scalar_type(sequence_length))  # sorting 16 bits is six times faster
    pools = shuffled[np.argsort(keys, kind="stable")]
    histogram = np.bincount(piece_lengths, minlength=sequence_length + 1)
    cursor = np.cumsum(histogram) - histogram  # of each length, the next piece in `pools`
    order, counts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for count, contents in _best_fit(histogram, sequence_length):
        columns = []
        for length, copies in contents:
            taken = pools[cursor[length] : cursor[length] + count * copies]
            cursor[length] += count * copies
            columns.append(taken.reshape(count, copies))
        rows = np.concatenate(columns, axis=1)
        order.append(rows.ravel())
        counts.append(np.full(count, rows.shape[1]))
    order = np.concatenate(order)
    ordered, row_starts = (documents[order], offsets[order], piece_lengths[order]), np.cumsum(np.concatenate(counts))
    return Packing(*ordered, row_starts, lengths, sequence_length, seed if moving else None)


def _best_fit(histogram: np.ndarray, capacity: int) -> list[tuple[int, tuple]]:
    """Kinds of rows, (number of rows, ((length, copies), ...)), by best fit with the longest pieces first."""
    open_rows: dict[int, list[tuple[int, tuple]]] = {}  # by the space left in a row
    for length in range(capacity, 0, -1):
        remaining = int(histogram[length])
        for space in sorted(space for space in open_rows if space >= length):
            while remaining and open_rows[space]:
                count, contents = open_rows[space].pop()
                copies = min(space // length, remaining)  # a row is filled before the next row
                used = min(count, remaining // copies)
                if used < count:
                    open_rows[space].append((count - used, contents))
                left = space - copies * length
                open_rows.setdefault(left, []).append((used, (*contents, (length, copies))))
                remaining -= used * copies
        fitting = capacity // length
        for count, copies in ((remaining // fitting, fitting), (1, remaining % fitting)):
            if count and copies:
                open_rows.setdefault(capacity - copies * length, []).append((count, ((length, copies),)))
    return [kind for space in sorted(open_rows) for kind in open_rows[space]]


def _in_fewest_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if values.max(initial=0) < 2**31 else values
