"""Packing: documents side by side in rows of T predictions; documents that are longer than a row are cut.

A document of n tokens holds n - 1 predictions. A document of at most T predictions is never cut. A longer one is cut
into pieces of T predictions and a rest. The grid of cuts moves from epoch to epoch, so that no token always stands at
the beginning of its piece, without context.

No array has a number for each document or row. The numbers of pieces by length say which lengths stand in which row
(`_best_fit`). They also number the pieces, the short ones first. A row names places among the pieces of a length, and
a permutation of these, another one in each epoch, says which piece stands there.

That leaves most rows of a small corpus as they were, since hardly two of its lengths are equal. So a small corpus has
several packings, of equally many rows, and its epochs take turns with them.
"""

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass

import numpy as np

from tpullm.data.batch import Lengths, Segments, flat_ranges
from tpullm.data.permutation import hashed, permuted

# Where few pieces have the same length, those of neighbouring lengths change places too, as if all were as long as the
# longest of them: else rows of a small corpus hold the same pieces in every epoch. It costs half a percent of fill.
ENOUGH, NEIGHBOURS = 64, 0.01
# A small corpus has more packings. As many are tried, of at most so many pieces together, which takes 0.1 s of a core.
TRIALS, PIECES = 16, 40_000
# In such a packing the shortest pieces, which hold this share of the tokens, go to one of the `FULLEST` rows with space
# for them, and the others to any. If a piece is left over, the next trial takes the next share, else the one before.
SHARES, FULLEST = (0, 0.02, 0.05, 0.1, 0.2, 0.4), 4


@dataclass(frozen=True)
class Packing:
    """The rows of an epoch. Rows of the same lengths are a kind; a kind has parts, each of one length.

    The kinds and rows of all packings stand one after the other.

    Args:
        lengths: of the documents.
        sequence_length: T.
        seed: of what changes from epoch to epoch: which pieces share a row, and where documents are cut.
        packings: how many there are. Epoch e has packing e mod `packings`.
        moving: False: all epochs are like the first one, and long documents are cut from their beginning on.
        groups: int64 [pools], the group of `lengths` that the pieces of a pool are of. Pools are sorted by the lengths
            of their pieces. Groups of long documents have two pools, one of pieces of T and before it one of rests.
        pool_starts: int64 [pools + 1], where the pieces of each pool begin among all pieces, and the last ones end.
        rests: the number of pools with pieces shorter than T.
        kind_starts: int64 [kinds + 1], where the rows of each kind begin among all rows.
        part_starts: int64 [kinds + 1], where its parts begin among all parts.
        copies: int64 [parts], the pieces of a part in each row.
        firsts: int64 [parts], the place of its first piece in the first row of its kind.
        begins, counts: int64 [parts], where the pieces begin that change places with it, and how many they are.
    """

    lengths: Lengths
    sequence_length: int
    seed: int
    packings: int
    moving: bool
    groups: np.ndarray
    pool_starts: np.ndarray
    rests: int
    kind_starts: np.ndarray
    part_starts: np.ndarray
    copies: np.ndarray
    firsts: np.ndarray
    begins: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> int:
        """The number of rows in an epoch."""
        return int(self.kind_starts[-1]) // self.packings

    @property
    def fill(self) -> float:
        """The share of positions that hold a prediction."""
        return self.lengths.total / max(1, self.rows * self.sequence_length)

    def segments(self, rows: np.ndarray, epochs: np.ndarray) -> Segments:
        """The pieces of `rows` (int64 [n]) in `epochs` (int64 [n]). The result numbers the rows from 0 to n - 1.

        A long document is a ring: the hash of seed, epoch and document says where its grid begins. The number and the
        lengths of its pieces do not change. The piece that contains the end of the document becomes two segments.
        """
        places, rows, keys = self._places(rows, epochs if self.moving else np.zeros_like(epochs))
        pools = np.searchsorted(self.pool_starts, places, side="right") - 1
        within, groups = places - self.pool_starts[pools], self.groups[pools]
        predictions = self.lengths.tokens[groups] - 1
        whole = predictions // self.sequence_length
        is_rest = pools < self.rests
        numbers, pieces = np.divmod(within, np.where(is_rest, 1, whole))
        documents = self.lengths.firsts[groups] + numbers
        starts = np.where(is_rest, whole, pieces) * self.sequence_length
        lengths = np.minimum(self.sequence_length, predictions - starts)
        if self.moving and len(long := np.flatnonzero(predictions > self.sequence_length)):
            of_grids = hashed(documents[long], keys[long]) % predictions[long].astype(np.uint64)
            starts[long] = (starts[long] + of_grids.astype(np.int64)) % predictions[long]
        first = np.minimum(lengths, predictions - starts)
        to_end, from_begin = (documents, starts, first, rows), (documents, 0 * starts, lengths - first, rows)
        segments = np.stack([to_end, from_begin], axis=2).reshape(4, -1)
        return Segments(*segments[:, segments[2] > 0])

    def _places(self, rows: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The numbers of the pieces in some rows, among all; the row of each (0 to n - 1), and a hash of its epoch."""
        rows = rows + self.rows * (epochs % self.packings)
        kinds = np.searchsorted(self.kind_starts, rows, side="right") - 1
        first_parts = self.part_starts[kinds]
        parts_of_rows = self.part_starts[kinds + 1] - first_parts
        parts = flat_ranges(first_parts, parts_of_rows)
        copies, nth = self.copies[parts], np.repeat(rows - self.kind_starts[kinds], parts_of_rows)
        places = flat_ranges(self.firsts[parts] + nth * copies, copies)
        parts, rows = np.repeat(parts, copies), np.repeat(np.repeat(np.arange(len(rows)), parts_of_rows), copies)
        keys, begins = hashed(epochs, self.seed)[rows], self.begins[parts]
        return begins + permuted(places - begins, self.counts[parts], hashed(begins, keys)), rows, keys


def pack(lengths: Lengths, sequence_length: int, seed: int, moving: bool = True) -> Packing:
    """Pack documents into rows of `sequence_length` predictions.

    Best fit, longest first, on the histogram of lengths (Krell et al. 2021, "Efficient Sequence Packing without
    Cross-contamination", section 3). Time and memory grow with the number of distinct lengths, not of documents.
    Documents of fewer than two tokens hold no prediction and are left out. `seed` decides which documents share a row.
    If `moving`, that and the cuts of long documents change from epoch to epoch, and a small corpus has more packings.
    """
    whole, rest = np.divmod(lengths.predictions, sequence_length)
    short, long = np.flatnonzero(rest), np.flatnonzero(whole)
    short = short[np.argsort(rest[short], kind="stable")]
    pieces = np.concatenate([lengths.counts[short], lengths.counts[long] * whole[long]])
    histogram = np.zeros(sequence_length + 1, np.int64)
    np.add.at(histogram, rest[short], lengths.counts[short])
    histogram[sequence_length] = pieces[len(short) :].sum()
    by_best_fit = _with_neighbours(histogram) if moving else histogram
    packings = [(by_best_fit, _best_fit(by_best_fit, sequence_length))]
    rows = sum(count for count, _ in packings[0][1])
    if moving and (cut := int(histogram[:-1].sum())):
        share = len(SHARES) - 2
        for trial in range(min(TRIALS, PIECES // cut)):
            chances = hashed(np.arange(cut), trial, seed)
            if kinds := _at_random(histogram, sequence_length, rows, chances, SHARES[share]):
                packings.append((histogram, kinds))
            share = max(share - 1, 0) if kinds else min(share + 1, len(SHARES) - 1)
    tables = [_tables(*packing) for packing in packings]
    rows, parts, copies, firsts, begins, counts = map(np.concatenate, zip(*tables, strict=True))
    return Packing(
        lengths, sequence_length, seed, len(packings), moving, np.concatenate([short, long]), _starts(pieces),
        len(short), _starts(rows), _starts(parts), copies, firsts, begins, counts,
    )  # fmt: skip


def _tables(histogram: np.ndarray, kinds: list[tuple[int, tuple]]) -> tuple[np.ndarray, ...]:
    """Rows and parts of each kind; `copies`, `firsts`, `begins` and `counts` of `Packing`, of these parts."""
    rows = np.array([count for count, _ in kinds], np.int64)
    parts = np.array([len(contents) for _, contents in kinds], np.int64)
    flat = np.array([part for _, contents in kinds for part in contents], np.int64).reshape(-1, 2)
    # The parts of a length take its pieces one after the other. They take all of them, so in the order of lengths the
    # parts take all pieces.
    used, by_length = flat[:, 1] * np.repeat(rows, parts), np.argsort(flat[:, 0], kind="stable")
    firsts = np.empty_like(used)
    firsts[by_length] = np.cumsum(used[by_length]) - used[by_length]
    begins = np.cumsum(histogram) - histogram
    return rows, parts, flat[:, 1], firsts, begins[flat[:, 0]], histogram[flat[:, 0]]


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each of so many begin, side by side, and where the last ones end; int64 [counts + 1]."""
    return np.concatenate([[0], np.cumsum(counts)])


def _with_neighbours(histogram: np.ndarray) -> np.ndarray:
    """The histogram with pieces of neighbouring lengths counted as the longest of them."""
    found, longest = np.zeros_like(histogram), 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        if not 0 < found[longest] < ENOUGH or length < longest * (1 - NEIGHBOURS):
            longest = length
        found[longest] += histogram[length]
    return found


def _best_fit(histogram: np.ndarray, capacity: int) -> list[tuple[int, tuple]]:
    """Kinds of rows, (number of rows, ((length, copies), ...)), by best fit with the longest pieces first."""
    open_rows: dict[int, list[tuple[int, tuple]]] = {}  # by the space left in a row
    spaces: list[int] = []  # of these, sorted

    def put(space: int, kind: tuple[int, tuple]) -> None:
        if space not in open_rows:
            insort(spaces, space)
        open_rows.setdefault(space, []).append(kind)

    for length in np.flatnonzero(histogram)[::-1].tolist():
        remaining = int(histogram[length])
        while remaining and (place := bisect_left(spaces, length)) < len(spaces):
            space = spaces[place]
            count, contents = open_rows[space].pop()
            if not open_rows[space]:
                del open_rows[space], spaces[place]
            copies = min(space // length, remaining)  # a row is filled before the next row
            used = min(count, remaining // copies)
            if used < count:
                put(space, (count - used, contents))
            put(space - copies * length, (used, (*contents, (length, copies))))
            remaining -= used * copies
        fitting = capacity // length
        for count, copies in ((remaining // fitting, fitting), (1, remaining % fitting)):
            if count and copies:
                put(capacity - copies * length, (count, ((length, copies),)))
    return [kind for space in spaces for kind in open_rows[space]]


def _at_random(
    histogram: np.ndarray, capacity: int, rows: int, chances: np.ndarray, share: float
) -> list[tuple[int, tuple]] | None:
    """Kinds of `rows` rows: the longest pieces first, each in one of the rows with space for it, as `chances` says.

    Args:
        histogram: of the pieces by length; those of `capacity` fill a row each.
        chances: uint64 [pieces below `capacity`].
        share: of the tokens; the shortest pieces that hold them choose among the `FULLEST` rows. Else some pieces
            would find no row.

    Returns:
        None if a piece finds no row.
    """
    whole = int(histogram[capacity])
    lengths = np.repeat(np.arange(capacity), histogram[:capacity])[::-1]
    is_free = np.cumsum(lengths) <= (1 - share) * lengths.sum()
    found: list[list[int]] = [[] for _ in range(rows - whole)]
    spaces = [(capacity, row) for row in range(len(found))]  # sorted
    for length, chance, free in zip(lengths.tolist(), chances.tolist(), is_free.tolist(), strict=True):
        first = bisect_left(spaces, (length, 0))
        fitting = len(spaces) - first
        if not fitting:
            return None
        space, row = spaces.pop(first + chance % (fitting if free else min(fitting, FULLEST)))
        found[row].append(length)
        insort(spaces, (space - length, row))
    for row in found:
        if not row:
            row.append(max(found, key=len).pop())
    kinds = Counter(tuple(Counter(row).items()) for row in found)
    if whole:
        kinds[(capacity, 1),] = whole
    return [(count, contents) for contents, count in kinds.items()]
