"""Files of examples → rows: JSON Lines, JSON and Parquet, a folder of these, here or on `gs://`.

What others made is read within bounds, so that a file may be larger than the memory, and a row may not. A row has at
most 4 MiB, and a file of JSON is read row by row. A child with limits reads Parquet (`system/process/limited.py`): such
a file says itself how much memory each of its pages takes, and the library believes it.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.corpus.files.json_text import MOST_ROW_BYTES, JsonText, parse_json, too_long
from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension, files_below
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say
from tpullm.system.process.limited import Limited


def example_files(name: str, what: str) -> list[Path]:
    """The files of a name in a recipe: the file itself, or those of a folder in the order of their names.

    Args:
        what: the examples that are looked for, for the errors.

    Raises:
        UserError: there is nothing of that name, or the folder has no file that can be read.
    """
    path = storage.path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder of {what}; correct its name in the recipe")
    there = [file for file, status in files_below(path) if status or file.is_file()]
    found = [file for file in there if extension(file) in READERS]
    if not found:
        raise UserError(f"{path}: has no file of {what}; it may have {' '.join(READERS)}")
    if others := len(there) - len(found):
        say(f"{path}: {others:,} other files are not read ({' '.join(READERS)} are)")
    return found


def rows_of_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file in their order, each with where it is. A file of another extension is JSON Lines.

    Raises:
        UserError: the file is broken, or a row is not an object; the error says where.
    """
    with readable(path):
        local = storage.local_copy(path)
        storage.check_file(local)
        for place, row in READERS.get(extension(path), _json_lines_rows)(local, str(path)):
            if not isinstance(row, dict):
                raise UserError(f"{path}: {place}: is not an object; write one JSON object for each example")
            yield f"{path}: {place}", row


def _json_lines_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_ROW_BYTES + 1), b""), start=1):
            if len(line) > MOST_ROW_BYTES:
                raise UserError(f"{name}: line {number}: {too_long(MOST_ROW_BYTES)}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{name}: line {number}: is not UTF-8; convert the file") from None
            if text.strip():
                yield f"line {number}", parse_json(text, f"{name}: line {number}")


def _json_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """A list, an object with one list, or JSON Lines with the extension of JSON."""
    with open_bytes(path) as file:
        text = JsonText(file, name, MOST_ROW_BYTES)
        if not text.is_lines():
            yield from text.rows()
            return
    yield from _json_lines_rows(path, name)


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    numbers = itertools.count(1)
    with contextlib.closing(Limited()) as child:
        while batch := child.call(name, "tpullm.data.examples.example_rows:more_of_parquet", str(path), name):
            if not isinstance(batch, list):
                raise UserError(f"{name}: its rows can't be read; it is broken or hostile, do not use it")
            yield from ((f"row {next(numbers)}", row) for row in batch)


PARQUET_ROWS = 16  # at a time: each may have 4 MiB, and an answer of the child has 64
PARQUET_BUFFER_BYTES = 1 << 20  # read at once of a column: a group of rows may have gigabytes
_reading: dict[str, Iterator[list[dict]]] = {}  # in the child


def more_of_parquet(path: str, name: str) -> list[dict[str, Any]]:
    """In the child: the next rows of a file, none at its end.

    Raises:
        UserError: it is not Parquet; `name` begins the error.
    """
    return next(_reading.setdefault(path, _parquet_row_batches(path, name)), [])


def _parquet_row_batches(path: str, name: str) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve memory that they never use
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False) as table:
            for batch in filter(len, table.iter_batches(batch_size=PARQUET_ROWS, use_threads=False)):
                yield [_row_as_json(row) for row in batch.to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        why = one_line(str(error), 200)
        raise UserError(f"{name}: is not Parquet or is cut off ({why}); copy or download it again") from None


def _row_as_json(value: Any) -> Any:
    """A value as JSON. A null is a key that a row does not have: in Parquet, all rows have all keys. Bytes are none."""
    if isinstance(value, dict):
        return {key: _row_as_json(item) for key, item in value.items() if not isinstance(item, bytes | None)}
    if isinstance(value, list | tuple):
        return [_row_as_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return None if isinstance(value, bytes) else str(value)


READERS = {".jsonl": _json_lines_rows, ".ndjson": _json_lines_rows, ".json": _json_rows, ".parquet": _parquet_rows}
