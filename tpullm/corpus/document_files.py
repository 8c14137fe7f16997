"""The collected documents on disk, in parts that are written once, and the marks that say what is used of each part.

    documents/parts/KEY.parquet         the documents of a part that passed the filters
    documents/parts/KEY.dropped.parquet what was dropped of it, and why, without its text
    documents/parts/KEY.npz             what is compared over the whole corpus: hashes, keys, bands, lines
    documents/parts/KEY.json            what is summed over the whole corpus; it is written last
    documents/marks/CORPUS/00000.npy    marks of the documents of some parts: used, held out, or dropped, and why
    documents/parts.json                the parts in their order, with their sources, and where their marks are

KEY is the hash of all that the part depends on, so a part serves any corpus that needs it. CORPUS is the hash of all
that the marks depend on.

The rounds of collect leave files of 64-bit numbers for each other, in slices, of which a reader takes one.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tpullm.system import storage
from tpullm.system.errors import UserError


def count(rows: int, most: int) -> int:
    """How many ranges of keys keep each below `most` rows: a power of 2. Keys are hashes, so ranges are about even."""
    return 1 << (rows // most).bit_length()


def range_bounds(keys: np.ndarray, ranges: int) -> np.ndarray:
    """Where each of the ranges begins in sorted keys, and where the last ends: int64 [ranges + 1]."""
    starts = np.arange(1, ranges, dtype=np.uint64) * np.uint64((1 << 64) // ranges if ranges > 1 else 0)
    return np.concatenate([[0], np.searchsorted(keys, starts), [len(keys)]]).astype(np.int64)


def write(path: Path, starts: np.ndarray, rows: Iterable[np.ndarray]) -> None:
    """Write arrays of rows, uint64 [rows] or [rows, width], and where each slice of all begins and the last ends."""
    with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
        for array in itertools.chain((np.array([len(starts)], np.int64), starts.astype(np.int64)), rows):
            file.write(array.tobytes())


def read_range(path: Path, number: int, width: int = 1) -> np.ndarray:
    """One slice of a file: uint64 [rows, width]. Of the starts two are read: a corpus has as many files as slices."""
    with path.open("rb") as file:
        (starts,) = _read_uint64(file, 0, 1)
        first, stop = _read_uint64(file, 1 + number, 2)
        rows = _read_uint64(file, 1 + int(starts) + width * int(first), width * int(stop - first))
    return rows.view(np.uint64).reshape(-1, width)


def mapped_range(path: Path, number: int) -> np.ndarray:
    """A slice of a file of single numbers that stays on the disk, of which some are looked at: uint64 [rows]."""
    with path.open("rb") as file:
        (starts,) = _read_uint64(file, 0, 1)
        first, stop = _read_uint64(file, 1 + number, 2)
        if first == stop:
            return np.zeros(0, np.uint64)
        offset = 8 * (1 + int(starts) + int(first))
        return np.asarray(np.memmap(file, np.uint64, "r", offset, int(stop - first)))


def _read_uint64(file: BinaryIO, place: int, count: int) -> np.ndarray:
    file.seek(8 * place)
    return np.frombuffer(file.read(8 * count), np.int64)


TRAIN, HELD_OUT = "train", "held_out"
# The marks. All from EXACT on are dropped.
MARKS = (
    *("train", "held_out", "exact duplicate", "near duplicate", "beyond the limit", "cut into stretches"),
    "lines of many documents",
)
USED, APART, EXACT, NEAR, BEYOND, STRETCHES, LINES = range(len(MARKS))
COMPARED = (EXACT, NEAR, LINES)  # dropped for what other documents have
SPLITS = {TRAIN: USED, HELD_OUT: APART}
COLUMNS = ("text", "hash", "language", "licence", "file", "record", "url", "date")
DROPPED_COLUMNS = ("reason", "hash", "language", "licence", "file", "record", "url", "beginning")
GROUP_CHARACTERS = 4_000_000  # of a row group: what a reader holds at once
BEGINNING = 80  # characters of a document that is dropped
EXAMPLES = 10  # of documents that were dropped, for each source and reason


@dataclass(frozen=True)
class Part:
    """One part of the documents in a folder `documents`.

    Args:
        documents: the folder.
        key: the name of the part.
        source: the name of its source.
        licence: the licence of its source.
        marked: the file of its marks, in the folder `marks`, and the rows in it: (name, start, stop).
    """

    documents: Path
    key: str
    source: str
    licence: str
    marked: tuple[str, int, int] = ("", 0, 0)

    @cached_property
    def path(self) -> Path:
        """The file of its documents."""
        return self.documents / "parts" / f"{self.key}.parquet"

    def beside(self, suffix: str) -> Path:
        """A file with other facts of the part: `.dropped.parquet`, `.npz` or `.json`."""
        return self.path.with_name(self.key + suffix)

    def marks(self) -> np.ndarray:
        """The mark of each document: uint8 [documents]; `UserError` if the file is broken."""
        name, start, stop = self.marked
        path = self.documents / "marks" / name
        with _refusing_broken_documents(path), path.open("rb") as file:
            return np.load(file)[start:stop]


class Writer:
    """Writes rows of text columns as Parquet; the bytes depend on the rows alone. A context manager."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS):
        self._target, self._columns, self._files = path, columns, contextlib.ExitStack()
        self._rows: list[tuple[str, ...]] = []
        self._characters = 0

    def __enter__(self) -> "Writer":
        import pyarrow
        import pyarrow.parquet

        temporary = self._files.enter_context(storage.atomic_file(self._target))
        self._schema = pyarrow.schema([(column, pyarrow.large_string()) for column in self._columns])
        how = {"compression": "zstd", "compression_level": 3, "store_schema": False}
        self._file = self._files.enter_context(pyarrow.parquet.ParquetWriter(temporary, self._schema, **how))
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._files.__exit__(*error)

    def write(self, *row: str) -> None:
        """Add one row: a value for each column."""
        self._rows.append(row)
        self._characters += len(row[0])
        if self._characters >= GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._file.write_table(pyarrow.table(list(zip(*self._rows, strict=True)), schema=self._schema))
        self._rows, self._characters = [], 0


def write_marks(path: Path, marks: np.ndarray) -> None:
    """Write a file of marks, uint8 [documents]."""
    with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, marks.astype(np.uint8))


def write_parts(documents: Path, parts: Sequence[Part]) -> None:
    """Say which parts there are, in their order."""
    named = [[part.key, part.source, part.licence, *part.marked] for part in parts]
    storage.write_json(documents / "parts.json", named)


def parts(documents: Path, source: str = "") -> list[Part]:
    """The parts of a source (of all sources), in their order; `UserError` if `parts.json` is missing."""
    rows = storage.read_json(documents / "parts.json")
    listed = [Part(documents, key, name, licence, tuple(marked)) for key, name, licence, *marked in rows]
    return [part for part in listed if source in ("", part.source)]


def read(documents: Path, source: str, split: str) -> Iterator[dict[str, str]]:
    """The documents of one source and split: see `read_part`."""
    for part in parts(documents, source):
        yield from (document for document, _ in read_part(part, (SPLITS[split],)))


def read_part(part: Part, marks: Sequence[int] = (USED, APART)) -> Iterator[tuple[dict[str, str], int]]:
    """The documents of a part that have one of these marks, and their marks; `UserError` if a file is broken.

    A document has `id`, `text`, `source`, `licence`, `language`, `hash`, `file`, `record`, `url` and `date`.
    """
    found, start = part.marks(), 0
    for rows in (table.to_pylist() for table in tables(part.path)):
        for row, mark in zip(rows, found[start : start + len(rows)].tolist(), strict=True):
            if mark in marks:
                own = {"id": row["hash"][:16], "source": part.source, "licence": row["licence"] or part.licence}
                yield row | own, mark
        start += len(rows)


def facts_at(documents: Path, source: str, split: str, numbers: Sequence[int]) -> dict[int, dict[str, str]]:
    """The facts of some documents of a source and split, by their numbers in it: `COLUMNS` but the text.

    Only the parts that hold them are read.
    """
    import pyarrow.parquet

    wanted, found, first = np.unique(np.array(numbers, np.int64)), {}, 0
    for part in parts(documents, source):
        rows = np.flatnonzero(part.marks() == SPLITS[split])
        here = wanted[(wanted >= first) & (wanted < first + len(rows))]
        if len(here):
            with _refusing_broken_documents(part.path), part.path.open("rb") as opened:
                facts = pyarrow.parquet.read_table(opened, columns=list(COLUMNS[1:])).take(rows[here - first])
            for number, row in zip(here.tolist(), facts.to_pylist(), strict=True):
                found[number] = row | {"licence": row["licence"] or part.licence}
        first += len(rows)
    return found


def read_dropped(part: Part) -> Iterator[dict[str, str]]:
    """What was dropped of a part before its documents were compared: the columns `DROPPED_COLUMNS`."""
    for table in tables(part.beside(".dropped.parquet")):
        yield from table.to_pylist()


def examples(part: Part, rows: np.ndarray) -> list[dict[str, str]]:
    """Some documents of a part as `read_dropped` has them, without a reason."""
    wanted, found, start = set(rows.tolist()), [], 0
    for documents in tables(part.path) if wanted else ():
        chosen = [row - start for row in sorted(wanted) if start <= row < start + len(documents)]
        records = (documents.slice(place, 1).to_pylist()[0] for place in chosen)  # not all of them as strings
        found += [one | {"beginning": one["text"][:BEGINNING]} for one in records]
        start += len(documents)
        if len(found) == len(wanted):
            break
    return [{column: row[column] for column in DROPPED_COLUMNS[1:]} for row in found]


def tables(path: Path) -> Iterator[Any]:
    """The row groups of a file of documents, as tables of pyarrow; `UserError` if it is broken."""
    import pyarrow.parquet

    with _refusing_broken_documents(path), path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)
    # Its threads and its allocator keep what they had: after 75 files 123 MiB more, by one thread and this 15.
    pyarrow.default_memory_pool().release_unused()


def texts(part: Part, rows: np.ndarray) -> Iterator[str]:
    """The texts of some documents of a part, by their rows, sorted; other row groups are not read."""
    import pyarrow.parquet

    start = 0
    with _refusing_broken_documents(part.path), part.path.open("rb") as opened:
        with pyarrow.parquet.ParquetFile(opened) as file:
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                chosen = rows[(rows >= start) & (rows < stop)] - start
                if len(chosen):
                    table = file.read_row_group(group, columns=["text"], use_threads=False)
                    yield from table["text"].take(chosen).to_pylist()
                start = stop
    pyarrow.default_memory_pool().release_unused()


@contextlib.contextmanager
def _refusing_broken_documents(path: Path) -> Iterator[None]:
    """What fails in the block because `path` is broken is a `UserError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: is broken ({error}); remove its documents folder and run collect again") from None
