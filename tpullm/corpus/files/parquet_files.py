"""Parquet → documents, a few rows at a time: the user's own, and those of FineWeb and datatrove as they are.

The file is read in a child (`limited_reading.py`): a few bytes may say that they hold gigabytes, and the library in C++
may end with its process.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.corpus.document import UNREADABLE, Raw
from tpullm.corpus.files import json_lines, limited_reading
from tpullm.corpus.files.opened import Unreadable
from tpullm.corpus.files.source_files import File

BATCH_ROWS = 1_000
BATCH_BYTES = 1 << 24  # of the text of a batch
BUFFER_BYTES = 1 << 20  # read at once of a column: a group of rows may have gigabytes


def read(path: Path, file: File, text_key: str) -> Iterator[Raw]:
    """The documents of the row groups that begin in the part of the file that `file` names.

    Raises:
        Unreadable: the file is no Parquet, or has no such column.
    """
    try:
        names, groups = limited_reading.call(f"{__name__}:look", str(path))
    except limited_reading.ReadingError as error:
        raise Unreadable(f"is not Parquet or is cut off ({error}); copy or download it again") from None
    if text_key not in names:
        raise Unreadable(f"has no column {text_key!r}: its columns are {', '.join(names)}; set text_key of the source")
    first = 0
    for number, (begin, rows, size) in enumerate(groups):
        if begin >= file.start and (file.stop is None or begin < file.stop):
            yield from _group(str(path), number, first, rows, size, text_key)
        first += rows


def _group(path: str, number: int, first: int, rows: int, size: int, text_key: str) -> Iterator[Raw]:
    """The documents of one row group, whose rows are numbered from `first`."""
    batch = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))
    taken = 0
    while taken < rows:
        try:
            records = limited_reading.call(f"{__name__}:rows", path, number, text_key, batch, taken)
        except limited_reading.ReadingError as error:
            if batch > 1:  # a text of a dictionary counts once in the size of its group, and takes memory for each row
                batch = 1
                continue
            where = f"rows from {first + taken + 1} to {first + rows}"
            yield Raw(dropped=UNREADABLE, record=where, problem=f"cannot be read ({error})")
            return
        for record in records:
            taken += 1
            yield json_lines.document(record, text_key, f"row {first + taken}")
        if not records:
            return


def look(path: str) -> list:
    """In the child: the columns, and of each row group where it begins, how many rows it has, and its size."""
    _table.cache_clear()  # the file may be another one by now
    _reader.cache_clear()
    table = _table(path)
    groups = []
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        offsets = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        groups.append([min(offsets, default=0), group.num_rows, group.total_byte_size])
    return [table.schema_arrow.names, groups]


def rows(path: str, group: int, text_key: str, batch: int, taken: int) -> list[dict[str, Any]]:
    """In the child: the rows of a row group after the first `taken`, at most `batch`."""
    reader = _reader(path, group, text_key, batch)
    if reader.taken != taken:  # of a call whose answer was lost
        _reader.cache_clear()
        reader = _reader(path, group, text_key, batch)
        while reader.taken < taken and reader.next():
            pass
    found = (reader.next() for _ in range(batch))
    return [row for row in found if row is not None]


class _Reader:
    """The rows of one row group, one after the other."""

    def __init__(self, path: str, group: int, text_key: str, batch: int):
        table = _table(path)
        columns = [name for name in table.schema_arrow.names if name == text_key or _is_fact(name)]
        batches = table.iter_batches(batch_size=batch, row_groups=[group], columns=columns, use_threads=False)
        self._rows = (row for found in batches for row in _rows(found, text_key))
        self.taken = 0

    def next(self) -> dict[str, Any] | None:
        row = next(self._rows, None)
        self.taken += row is not None
        return row and {name: _json(value) for name, value in row.items()}


def _rows(batch: Any, text_key: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # of one row; Parquet does not look
        return [_row(batch.slice(place, 1), text_key) for place in range(len(batch))]


def _row(batch: Any, text_key: str) -> dict[str, Any]:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return {text_key: "\udc80"}  # no text, and known as such


def _is_fact(name: str) -> bool:
    return name.lower() in json_lines.NAMES or name in json_lines.INNER


def _json(value: Any) -> Any:
    """A value as JSON can hold it."""
    if value is None or isinstance(value, str):  # nearly all
        return value
    if isinstance(value, dict):
        return {name: _json(inner) for name, inner in value.items() if _is_fact(name)}
    if isinstance(value, list):
        return [_json(inner) for inner in value[:20]]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, int | float) else str(value)


_reader = functools.lru_cache(1)(_Reader)


@functools.lru_cache(1)
def _table(path: str) -> Any:
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve memory that they never use
    return pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
