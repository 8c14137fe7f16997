"""The data order as a function: which documents are in the batch of a step, whoever asks and whenever.

Rows of packed documents are shuffled anew in each epoch, the sources are mixed by weight, and B rows make a batch. The
whole state is the step. grain does the shuffling, mixing and reading ahead (and imports JAX where that is installed, so
it is imported here only when a stream is made).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tpullm.config import Recipe
from tpullm.corpus.sources import sources as corpus_sources
from tpullm.data import packing
from tpullm.data.batch import Batch, Documents, Segments, build
from tpullm.data.packing import Packing
from tpullm.data.store import TokenStore
from tpullm.errors import UserError


@dataclass(frozen=True)
class Placed:
    """One piece of a document in a batch.

    Args:
        source: the source's name.
        document: its number in the source's store.
        id: the first 8 bytes of the hash of its text, as hex.
        start: the first token that is read.
        length: how many tokens are predicted.
        row: the row of the global batch.
    """

    source: str
    document: int
    id: str
    start: int
    length: int
    row: int


class Stream:
    """Batches of one stage of training: `batch_at(step)` is the same for every host count, worker count and restart."""

    def __init__(
        self,
        sources: Mapping[str, Documents],
        weights: Mapping[str, float],
        batch_size: int,
        sequence_length: int,
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
        what: str = "corpus",
    ):
        """Pack and order the documents of `sources`; each host builds its own rows of every batch.

        Weights are shares of the training tokens, relative to each other (held to 1 % of the smallest); a source
        without weight or documents is left out.

        Raises:
            UserError: all sources together fill fewer rows than one batch, or the hosts can't share the batch.
        """
        if batch_size % host_count:
            raise UserError(f"batch_size: {batch_size} rows can't be shared by {host_count} hosts; choose a multiple")
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.packings: dict[str, Packing] = {}
        self.sources: dict[str, Documents] = {}
        for name, documents in sources.items():
            packed = packing.pack(documents.lengths, sequence_length, _seed(seed, name, "pack"))
            if packed.rows and weights[name] > 0:
                self.packings[name], self.sources[name] = packed, documents
        self._check_rows(what)
        # a weight is a share of the tokens, and what is mixed are rows
        shares = {name: weights[name] / packed.fill for name, packed in self.packings.items()}
        self.shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        own = batch_size // host_count
        self._own_rows = slice(host_index * own, (host_index + 1) * own)
        self._order = self._ordered(seed)

    def batch_at(self, step: int) -> Batch:
        """This host's rows of the batch of `step` (from 0)."""
        parts = self._segments_at(step, self._own_rows)
        own = self._own_rows.stop - self._own_rows.start
        return build([(self.sources[name], segments) for name, segments in parts], own, self.sequence_length)

    def batches(self, start: int, stop: int, workers: int = 2) -> Iterator[Batch]:
        """The batches of the steps from `start` to `stop - 1`, `workers` threads reading ahead (0: none).

        The threads end with the generator: when it is used up, closed or collected.
        """
        import grain

        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
        iterator = iter(grain.MapDataset.range(start, stop).map(self.batch_at).to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def documents_at(self, step: int) -> list[Placed]:
        """Which documents are in the global batch of `step`, row by row."""
        placed = []
        for name, segments in self._segments_at(step, slice(0, self.batch_size)):
            columns = (segments.documents, segments.starts, segments.lengths, segments.rows)
            ids = self.sources[name].ids
            for document, start, length, row in zip(*(column.tolist() for column in columns), strict=True):
                placed.append(Placed(name, document, f"{int(ids[document]):016x}", start, length, row))
        return sorted(placed, key=lambda piece: piece.row)

    def epoch_at(self, step: int) -> dict[str, float]:
        """How often each source has been read when `step` begins."""
        rows = step * self.batch_size
        return {name: rows * share / self.packings[name].rows for name, share in self.shares.items()}

    def _segments_at(self, step: int, own: slice) -> list[tuple[str, Segments]]:
        chosen = self._order[step][own]
        parts = []
        for source, (name, packed) in enumerate(self.packings.items()):
            where = np.flatnonzero(chosen[:, 0] == source)
            if len(where):
                segments = packed.segments(rows=chosen[where, 2], epochs=chosen[where, 1])
                parts.append((name, replace(segments, rows=where[segments.rows])))
        return parts

    def _ordered(self, seed: int):
        """A grain dataset of steps: int64 [B, 3], of each row its source, epoch and number in that source."""
        import grain

        datasets = []
        for source, (name, packed) in enumerate(self.packings.items()):
            rows = grain.MapDataset.range(packed.rows).shuffle(seed=_seed(seed, name, "shuffle"))
            datasets.append(rows.repeat().map_with_index(_Row(source, packed.rows)))
        mixed = grain.MapDataset.mix(datasets, list(self.shares.values()))
        return mixed.batch(self.batch_size, batch_fn=np.array)

    def _check_rows(self, what: str) -> None:
        rows = sum(packed.rows for packed in self.packings.values())
        if rows < self.batch_size:
            tokens = sum(int(packed.lengths.sum()) for packed in self.packings.values())
            needed = self.batch_size * self.sequence_length
            raise UserError(
                f"{what} too small: {tokens:,} training tokens fill {rows} rows, a batch is {self.batch_size} rows"
                f" ({needed:,} tokens); collect more text, or lower batch_size or sequence_length"
            )


@dataclass(frozen=True)
class _Row:
    """Adds source and epoch to a row of an endless dataset."""

    source: int
    rows: int

    def __call__(self, index: int, row: int) -> tuple[int, int, int]:
        return self.source, index // self.rows, row


def pretraining_stream(recipe: Recipe, run: Path) -> Stream:
    """The batches of `pretrain`: the training documents of every source that has a weight, from RUN/tokens."""
    weights = {source.name: source.weight for source in corpus_sources(recipe) if source.weight > 0}
    stores = {name: TokenStore(run / "tokens" / name / "train") for name in weights}
    stage = recipe.pretrain
    return Stream(stores, weights, stage.batch_size, stage.sequence_length, recipe.seed)


def evaluation_batches(
    documents: Documents, batch_size: int, sequence_length: int, rows: int = 0, host_index: int = 0, host_count: int = 1
) -> Iterator[Batch]:
    """All documents once, in a fixed order, in at most `rows` rows (0 is all); the last batch is padded with weight 0.

    Documents that fit are whole, longer ones are cut on a fixed grid from their beginning. Which documents come is the
    same on every machine and at every time. With `host_count` hosts each builds its own rows of each batch.
    """
    packed = packing.pack(documents.lengths, sequence_length, seed=0, moving=False)
    order = np.random.default_rng(0).permutation(packed.rows)[: rows or None]
    own = batch_size // host_count
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size][host_index * own : (host_index + 1) * own]
        segments = packed.segments(chosen, np.zeros_like(chosen))
        yield build([(documents, segments)], own, sequence_length)


def _seed(seed: int, *names: str) -> int:
    """A seed of 32 bits for one use; sums would make epoch 1 of seed 0 that of epoch 0 of seed 1."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:4], "big")
