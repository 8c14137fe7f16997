"""The data order as a function of the step: which documents are in the batch of a step.

Rows of packed documents are shuffled anew in each epoch, the sources are mixed by weight, and B rows make a batch. The
step is the whole state. grain shuffles and reads ahead. grain imports JAX if that is installed, so it is imported only
when a stream is made.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.corpus.sources import sources as corpus_sources
from tpullm.data import packing
from tpullm.data.batch import Batch, Documents, Segments, build, split
from tpullm.data.packing import Packing
from tpullm.data.row_order import Order
from tpullm.data.token_store import TokenStore
from tpullm.errors import UserError
from tpullm.recipe.schema import Recipe

# Smaller batches are built several at once. That is three times as fast for 4 x 512 tokens and documents of 40 tokens.
TOKENS_AT_ONCE = 64 * 1024


@dataclass(frozen=True)
class Placed:
    """One piece of a document in a batch.

    Args:
        source: the name of the source.
        document: the number of the document in the store of the source.
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


class Stream:
    """The batches of a training stage. `batch_at(step)` does not depend on hosts, workers or restarts."""

    def __init__(
        self,
        sources: Mapping[str, Documents],
        weights: Mapping[str, float],
        batch_size: int,
        sequence_length: int,
        seed: int,
        own_rows: np.ndarray | None = None,
        what: str = "corpus",
        moving: bool = True,
    ):
        """Pack and order the documents of `sources`. Each host builds its own rows of every batch (None: all rows).

        Weights are relative shares of the training tokens, exact to 1 % of the smallest share. A source without weight
        or documents is left out. If `moving`, the cuts of documents longer than a row move from epoch to epoch.

        Raises:
            UserError: all sources together fill fewer rows than one batch has.
        """
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.packings: dict[str, Packing] = {}
        self.sources: dict[str, Documents] = {}
        for name, documents in sources.items():
            packed = packing.pack(documents.lengths, sequence_length, seed_of(seed, name, "pack"), moving)
            if packed.rows and weights[name] > 0:
                self.packings[name], self.sources[name] = packed, documents
        self._check_rows(what)
        # a weight is a share of the tokens, and rows are mixed
        shares = {name: weights[name] / packed.fill for name, packed in self.packings.items()}
        self.shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        self._order = Order(
            [packed.rows for packed in self.packings.values()],
            list(self.shares.values()),
            [seed_of(seed, name, "shuffle") for name in self.packings],
        )
        self._own_rows = np.arange(batch_size) if own_rows is None else own_rows
        self._left_out: tuple[tuple[int, int], ...] = ()

    def without(self, left_out: Sequence[Sequence[int]]) -> "Stream":
        """The same stream, of which batches are left out: pairs `[step, count]`, `count` of them before `step`."""
        other = copy.copy(self)
        other._left_out = tuple((step, count) for step, count in left_out)
        return other

    def _numbers(self, steps: np.ndarray) -> np.ndarray:
        """The numbers of the batches of `steps`, with those that are left out counted too."""
        return steps + sum(np.where(steps >= step, count, 0) for step, count in self._left_out)

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
            columns = (segments.documents, segments.starts, segments.lengths, segments.rows)
            ids = self.sources[name].ids
            for document, start, length, row in zip(*(column.tolist() for column in columns), strict=True):
                placed.append(Placed(name, document, f"{int(ids[document]):016x}", start, length, row))
        return sorted(placed, key=lambda piece: piece.row)

    def epoch_at(self, step: int) -> dict[str, float]:
        """How many epochs of each source have been read when `step` begins."""
        rows = int(self._numbers(np.array(step))) * self.batch_size
        return {name: rows * share / self.packings[name].rows for name, share in self.shares.items()}

    def _steps_at_once(self) -> int:
        """How many batches are built at once: at most `TOKENS_AT_ONCE` tokens, and at most one epoch of each source.

        `grain.experimental.index_shuffle` takes at least 22 ms for an epoch, however few rows it has, and the first
        batch should wait for one epoch only.
        """
        epoch = 1 / max(self.epoch_at(1).values())
        return max(1, int(min(TOKENS_AT_ONCE / (len(self._own_rows) * self.sequence_length), epoch)))

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

    def _check_rows(self, what: str) -> None:
        rows = sum(packed.rows for packed in self.packings.values())
        if rows < self.batch_size:
            tokens = sum(int(packed.lengths.sum()) for packed in self.packings.values())
            needed = self.batch_size * self.sequence_length
            raise UserError(
                f"{what} too small: {tokens:,} training tokens fill {rows} rows, a batch is {self.batch_size} rows"
                f" ({needed:,} tokens); collect more text, or lower batch_size or sequence_length"
            )


def pretraining_stream(recipe: Recipe, run: Path, own_rows: np.ndarray | None = None) -> Stream:
    """The batches of `pretrain`: the training documents of every source with a weight, from RUN/tokens."""
    weights = {source.name: source.weight for source in corpus_sources(recipe) if source.weight > 0}
    stores = {name: TokenStore(run / "tokens" / name / "train") for name in weights}
    stage = recipe.pretrain
    return Stream(stores, weights, stage.batch_size, stage.sequence_length, recipe.seed, own_rows)


class EvaluationBatches:
    """What `evaluation_batches` gives for these arguments, built anew each time that it is read."""

    def __init__(self, *arguments: Any):
        self._arguments = arguments

    def __iter__(self) -> Iterator[Batch]:
        return evaluation_batches(*self._arguments)


def evaluation_batches(
    documents: Documents, batch_size: int, sequence_length: int, rows: int = 0, own_rows: np.ndarray | None = None
) -> Iterator[Batch]:
    """All documents once in a fixed order, in at most `rows` rows (0: all). Padding, of weight 0, fills the last batch.

    Documents that fit a row are whole. Longer ones are cut on a fixed grid that starts at their beginning. Every call
    chooses the same documents, on any machine. Each host builds its own rows of each batch (None: all rows).
    """
    packed = packing.pack(documents.lengths, sequence_length, seed=0, moving=False)
    order = np.random.default_rng(0).permutation(packed.rows)[: rows or None]
    own = np.arange(batch_size) if own_rows is None else own_rows
    for first in range(0, len(order), batch_size):
        chosen = order[(first + own)[first + own < len(order)]]
        segments = packed.segments(chosen, np.zeros_like(chosen))
        yield build([(documents, segments)], len(own), sequence_length)


def held_out_batches(
    recipe: Recipe, run: Path, batch_size: int, sequence_length: int, rows: int, own_rows: np.ndarray
) -> dict[str, list[Batch]]:
    """This host's rows of the evaluation batches by source, of the sources that have held-out documents."""
    batches = {}
    for source in corpus_sources(recipe):
        path = run / "tokens" / source.name / "held_out"
        if path.exists():
            store = TokenStore(path)
            batches[source.name] = list(evaluation_batches(store, batch_size, sequence_length, rows, own_rows))
    return {name: found for name, found in batches.items() if found}


def seed_of(seed: int, *names: str) -> int:
    """A seed of 32 bits for one use. With sums, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:4], "big")
