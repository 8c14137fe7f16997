"""What a teacher says of the rows of a stage: computed once, kept in the stage, and read with the batches.

The rows are those of the packing, which cut no document otherwise in another epoch, so a row is known by its source and
its number there. They are kept in the order in which the training first reads them: a longer training only adds some.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tpullm.data.batch import Batch, TaughtBatch, build
from tpullm.data.stream import EvaluationBatches, Stream
from tpullm.recipe.schema import TeacherConfig
from tpullm.system import storage

PLACES_AT_ONCE = 1 << 16  # of the order


@dataclass
class Kept:
    """What was said of `rows` rows: files of `each` rows, which are read through memory maps.

    A file is called by its rows, such as `16-32.npy`. It holds `[rows, T, K]` pairs of a token and its log-probability.
    """

    folder: Path
    rows: int
    each: int
    _open: dict[int, np.ndarray] = field(default_factory=dict)

    def missing(self) -> list[int]:
        """The numbers of the files that are not there."""
        return [number for number in range(-(-self.rows // self.each)) if not self._file(number).exists()]

    def write(self, number: int, ids_BTK: np.ndarray, logps_BTK: np.ndarray) -> None:
        """Write one file; what only fills the batch is left out."""
        count = min(self.each, self.rows - number * self.each)
        said = np.zeros((count, *ids_BTK.shape[1:]), [("ids", ids_BTK.dtype), ("logps", np.float32)])
        said["ids"], said["logps"] = ids_BTK[:count], logps_BTK[:count]
        with storage.atomic_file(self._file(number)) as temporary, open(temporary, "wb") as opened:
            np.save(opened, said)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int32) and log-probabilities `[rows, T, K]`. Of a row beyond the last one, which is padding, zeros."""
        files = rows // self.each
        shape = self._of_file(0).shape[1:]
        ids, logps = np.zeros((len(rows), *shape), np.int32), np.zeros((len(rows), *shape), np.float32)
        for number in np.unique(files[rows < self.rows]).tolist():
            where = np.flatnonzero((files == number) & (rows < self.rows))
            said = self._of_file(number)[rows[where] % self.each]
            ids[where], logps[where] = said["ids"], said["logps"]
        return ids, logps

    def _of_file(self, number: int) -> np.ndarray:
        if number not in self._open:
            self._open[number] = np.load(storage.local_copy(self._file(number)), mmap_mode="r")
        return self._open[number]

    def _file(self, number: int) -> Path:
        first = number * self.each
        return self.folder / f"{first}-{min(first + self.each, self.rows)}.npy"


class TaughtStream(Stream):
    """A stream whose batches also have what a teacher says. `keep` comes before the first batch."""

    def __init__(self, *arguments, settings: TeacherConfig, folder: Path, **options):
        """Take the arguments of `Stream`, the settings of the teacher, and where it is kept what it says."""
        super().__init__(*arguments, **options, moving=False)
        self._settings, self._folder = settings, folder
        self._firsts = np.array([0, *np.cumsum([packed.rows for packed in self.packings.values()])])

    def keep(self, batches: int, each: int, own_rows: np.ndarray) -> tuple[Kept, Callable[[int], Batch]]:
        """What is kept for so many batches, and of each of its files, by number, this host's rows.

        Args:
            each: rows of a file.
            own_rows: of these, this host's.
        """
        # The rows in the order in which they are first read, each once, counted through all sources.
        found, seen, places = [], np.zeros(self._firsts[-1], bool), batches * self.batch_size
        for first in range(0, places, PLACES_AT_ONCE):
            sources, _, rows = self._order.at(np.arange(first, min(first + PLACES_AT_ONCE, places)))
            numbers, at = np.unique(self._firsts[sources] + rows, return_index=True)
            new = ~seen[numbers]
            found.append(numbers[new][np.argsort(at[new])])
            seen[found[-1]] = True
            if seen.all():
                break
        used = np.concatenate(found)
        self._kept_as = np.full(self._firsts[-1], -1)
        self._kept_as[used] = np.arange(len(used))
        self._kept = Kept(self._folder, len(used), each)

        def of_file(number: int) -> Batch:
            chosen = used[number * each :][own_rows[own_rows < len(used) - number * each]]
            sources = np.searchsorted(self._firsts, chosen, side="right") - 1
            parts = self._segments(sources, np.zeros_like(chosen), chosen - self._firsts[sources])
            return build([(self.sources[name], part) for name, part in parts], len(own_rows), self.sequence_length)

        return self._kept, of_file

    def _rows(self, sources: np.ndarray, epochs: np.ndarray, rows: np.ndarray) -> TaughtBatch:
        plain = super()._rows(sources, epochs, rows)
        said = self._kept.read(self._kept_as[self._firsts[sources] + rows])
        return TaughtBatch(**vars(plain), ids=said[0], logps=said[1], settings=self._settings)


@dataclass(frozen=True)
class TaughtEvaluation:
    """Held-out batches with what a teacher says.

    Args:
        batches: this host's rows of them.
        kept: what was said of all rows, in their order.
        batch_size: rows of a batch.
        own_rows: this host's.
        settings: of the teacher.
    """

    batches: EvaluationBatches
    kept: Kept
    batch_size: int
    own_rows: np.ndarray
    settings: TeacherConfig

    def __iter__(self) -> Iterator[TaughtBatch]:
        for number, plain in enumerate(self.batches):
            ids, logps = self.kept.read(number * self.batch_size + self.own_rows)
            yield TaughtBatch(**vars(plain), ids=ids, logps=logps, settings=self.settings)
