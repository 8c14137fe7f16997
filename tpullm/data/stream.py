"""The data order as a function of the step: which documents are in the batch of a step.

Rows of packed documents are shuffled anew in each epoch, the sources are mixed by weight, and B rows make a batch. The
step is the whole state. Where a phase with other weights begins, each source goes on in its own order. grain reads
ahead. It imports JAX if that is installed, so it is imported only when batches are read.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from tpullm.corpus.sources import sources as corpus_sources
from tpullm.data import mixture, packing
from tpullm.data.batch import Batch, Documents, Segments, build, split
from tpullm.data.mixture import Order, Schedule
from tpullm.data.packing import Packing
from tpullm.data.permutation import permuted
from tpullm.data.token_store import TokenStore
from tpullm.recipe.schema import Recipe
from tpullm.system.errors import UserError

# Smaller batches are built several at once. That is three times as fast for 4 x 512 tokens and documents of 40 tokens.
TOKENS_AT_ONCE = 64 * 1024


@dataclass(frozen=True)
class Placed:
    """One piece of a document in a batch.

    Args:
        source: the name of the source.
        document: the number of the document in the corpus, among those of its source and split.
        id: the first 8 bytes of the hash of its text, as hex.
        start: the first token that is read.
        length: the number of tokens that are predicted.
        row: the row of the global batch.
    """

    source: str
    document: int
    id: str
    start: int
    length: int
    row: int


class LeavesOut:
    """A stream of batches of which some may be left out."""

    _left_out: tuple[tuple[int, int], ...] = ()

    def without(self, left_out: Sequence[Sequence[int]]) -> Self:
        """The same stream without some batches. A pair `[step, count]` leaves out `count` batches before `step`."""
        other = copy.copy(self)
        other._left_out = tuple((step, count) for step, count in left_out)
        return other

    def changes(self, step: int) -> bool:
        """Whether other text is read from the batch of `step` on (from 0)."""
        return False

    def _numbers(self, steps: np.ndarray) -> np.ndarray:
        """The numbers of the batches of `steps`, with those that are left out counted too."""
        return steps + sum(np.where(steps >= step, count, 0) for step, count in self._left_out)


class Stream(LeavesOut):
    """The batches of a training stage. `batch_at(step)` does not depend on hosts, workers or restarts."""

    def __init__(
        self,
        sources: Mapping[str, Documents],
        weights: Mapping[str, float] | Schedule,
        batch_size: int,
        sequence_length: int,
        seed: int,
        own_rows: np.ndarray | None = None,
        what: str = "corpus",
        moving: bool = True,
    ):
        """Pack and order the documents of `sources`. Each host builds its own rows of every batch (None: all rows).

        Weights are relative shares of the training tokens, exact to 1 % of the smallest share; a schedule has them for
        each phase. A source without weight or documents is left out. If `moving`, the cuts of documents longer than a
        row move from epoch to epoch.

        Raises:
            UserError: all sources together fill fewer rows than one batch has.
        """
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.packings: dict[str, Packing] = {}
        self.sources: dict[str, Documents] = {}
        schedule = weights if isinstance(weights, Schedule) else Schedule([(0, weights)])
        for name, documents in sources.items():
            if not schedule.reads(name):
                continue
            packed = packing.pack(documents.lengths, sequence_length, seed_for(seed, name, "pack"), moving)
            if packed.rows:
                self.packings[name], self.sources[name] = packed, documents
        rows = sum(packed.rows for packed in self.packings.values())
        if rows < batch_size:
            tokens = sum(packed.lengths.total for packed in self.packings.values())
            raise UserError(
                f"{what} too small: {tokens:,} training tokens fill {rows} rows, a batch is {batch_size} rows"
                f" ({batch_size * sequence_length:,} tokens); collect more text, or lower batch_size or sequence_length"
            )
        self._shares = schedule.row_shares(self.packings, batch_size)
        self._firsts = [first for first, _ in schedule.phases]
        firsts = [first * batch_size for first in self._firsts]
        self._order = Order(
            [packed.rows for packed in self.packings.values()],
            self._shares[0],
            [seed_for(seed, name, "shuffle") for name in self.packings],
            list(zip(firsts, self._shares, strict=True))[1:],
        )
        self._own_rows = np.arange(batch_size) if own_rows is None else own_rows

    def changes(self, step: int) -> bool:
        """Whether a phase of the mixture begins with the batch of `step` (from 0)."""
        before, here = self._numbers(np.array([step - 1, step]))
        return step > 0 and any(before < first <= here for first in self._firsts)

    def batch_at(self, step: int) -> Batch:
        """This host's rows of the batch of `step` (from 0)."""
        return self._built(step, step + 1)[0]

    def batches(self, start: int, stop: int, workers: int = 2) -> Iterator[Batch]:
        """The batches of the steps from `start` to `stop - 1`. `workers` threads read ahead (0: none).

        The threads end when the generator is exhausted, closed or garbage-collected.
        """
        import grain

        steps = self._steps_at_once()
        built = grain.MapDataset.range(start, stop, steps).map(
            lambda first: self._built(first, min(first + steps, stop))
        )
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
        iterator = iter(built.to_iter_dataset(options))
        try:
            for several in iterator:
                yield from several
        finally:
            iterator.close()

    def documents_at(self, step: int) -> list[Placed]:
        """The pieces of documents in the global batch of `step`, row by row."""
        placed = []
        first = self._numbers(np.array(step)) * self.batch_size
        for name, segments in self._segments(*self._order.at(first + np.arange(self.batch_size))):
            columns = (
                *self.sources[name].identities(segments.documents),
                segments.starts,
                segments.lengths,
                segments.rows,
            )
            for document, id, start, length, row in zip(*(column.tolist() for column in columns), strict=True):
                placed.append(Placed(_source_of_part(name), document, f"{id:016x}", start, length, row))
        return sorted(placed, key=lambda piece: piece.row)

    def documents_in(self, first: int, last: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The pieces of the steps from `first` to `last - 1`: by source, their documents and the steps that read them.

        The documents are the numbers that they have in the store of the source. A source may come in several parts.
        """
        numbers = self._numbers(np.arange(first, last))
        places = (numbers[:, None] * self.batch_size + np.arange(self.batch_size)).ravel()
        for name, segments in self._segments(*self._order.at(places)):
            yield _source_of_part(name), segments.documents, first + segments.rows // self.batch_size

    def epoch_at(self, step: int) -> dict[str, float]:
        """How many epochs of each source have been read when `step` begins."""
        read, there = dict[str, int](), dict[str, int]()
        for name, rows in self._read_before(step).items():
            source = _source_of_part(name)
            read[source] = read.get(source, 0) + rows
            there[source] = there.get(source, 0) + self.packings[name].rows
        return {name: read[name] / there[name] for name in read}

    def part_epoch_at(self, step: int) -> dict[str, float]:
        """The same of each part: of a source, or of its documents in one language (`SOURCE/LANGUAGE`)."""
        return {name: rows / self.packings[name].rows for name, rows in self._read_before(step).items()}

    def _read_before(self, step: int) -> dict[str, int]:
        """The rows of each part that have been read when `step` begins."""
        place = int(self._numbers(np.array(step))) * self.batch_size
        return dict(zip(self.packings, self._order.read_before(place), strict=True))

    def _steps_at_once(self) -> int:
        """How many batches are built at once: `TOKENS_AT_ONCE` tokens at most."""
        return max(1, TOKENS_AT_ONCE // (len(self._own_rows) * self.sequence_length))

    def _built(self, start: int, stop: int) -> list[Batch]:
        """This host's batches of the steps from `start` to `stop - 1`."""
        numbers = self._numbers(np.arange(start, stop))
        places = (numbers[:, None] * self.batch_size + self._own_rows).ravel()
        return split(self._rows(*self._order.at(places)), stop - start)

    def _rows(self, sources: np.ndarray, epochs: np.ndarray, rows: np.ndarray) -> Batch:
        """The batch of some rows of the sources, int64 [n] each."""
        parts = [(self.sources[name], segments) for name, segments in self._segments(sources, epochs, rows)]
        return build(parts, len(rows), self.sequence_length)

    def _segments(self, sources: np.ndarray, epochs: np.ndarray, rows: np.ndarray) -> list[tuple[str, Segments]]:
        """By source, the pieces of some of its rows. Row i of the result is row i of the arguments."""
        parts = []
        for source, (name, packed) in enumerate(self.packings.items()):
            where = np.flatnonzero(sources == source)
            if len(where):
                segments = packed.segments(rows[where], epochs[where])
                parts.append((name, replace(segments, rows=where[segments.rows])))
        return parts


def pretraining_stream(recipe: Recipe, run: Path, own_rows: np.ndarray | None = None) -> Stream:
    """The batches of `pretrain`: the training documents of every source with a weight, from RUN/tokens."""
    stage = recipe.pretrain
    return Stream(*mixture.of_recipe(recipe, run), stage.batch_size, stage.sequence_length, recipe.seed, own_rows)


@dataclass(frozen=True)
class EvaluationBatches:
    """All documents once in a fixed order, in at most `rows` rows (0: all). Padding, of weight 0, fills the last batch.

    Documents that fit a row are whole. Longer ones are cut on a fixed grid that starts at their beginning. The same
    documents are chosen on any machine, and batches are built anew each time that they are read. Each host builds its
    own rows of each batch (None: all rows).
    """

    documents: Documents
    batch_size: int
    sequence_length: int
    rows: int = 0
    own_rows: np.ndarray | None = None

    def __iter__(self) -> Iterator[Batch]:
        packed = packing.pack(self.documents.lengths, self.sequence_length, seed=0, moving=False)
        count = min(self.rows or packed.rows, packed.rows)
        own = np.arange(self.batch_size) if self.own_rows is None else self.own_rows
        for first in range(0, count, self.batch_size):
            places = first + own[first + own < count]
            chosen = permuted(places, np.full_like(places, packed.rows), np.zeros(len(places), np.uint64))
            segments = packed.segments(chosen, np.zeros_like(chosen))
            yield build([(self.documents, segments)], len(own), self.sequence_length)


def held_out_batches(
    recipe: Recipe, run: Path, batch_size: int, sequence_length: int, rows: int, own_rows: np.ndarray
) -> dict[str, list[Batch]]:
    """This host's rows of the evaluation batches by source, of the sources that have held-out documents."""
    batches = {}
    for source in corpus_sources(recipe):
        path = run / "tokens" / source.name / "held_out"
        if path.exists():
            store = TokenStore(path)
            batches[source.name] = list(EvaluationBatches(store, batch_size, sequence_length, rows, own_rows))
    return {name: found for name, found in batches.items() if found}


def _source_of_part(part: str) -> str:
    """The source of a part `SOURCE` or `SOURCE/LANGUAGE`."""
    return part.partition("/")[0]


def seed_for(seed: int, *names: str) -> int:
    """A seed of 32 bits for one use. With sums, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:4], "big")
