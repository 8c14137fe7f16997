"""Files of examples → rows: JSON Lines, JSON and Parquet, a folder of these, here or on `gs://`.

What others made is read within bounds, so that a file may be larger than the memory, and a row may not. A row has at
most 4 MiB, and a file of JSON is read row by row. A child with limits reads Parquet (`system/process/limited.py`): such
a file says itself how much memory each of its pages takes, and the library believes it.
"""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension, files_below
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say
from tpullm.system.process.limited import Limited

# A million tokens of text. A value of three bytes becomes an object of a hundred, so a row takes 0.1 GB at most.
MOST_ROW_BYTES = 1 << 22
_SPACE = re.compile(r"[ \t\n\r]*")


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
                raise UserError(f"{name}: line {number}: {_line_too_long()}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{name}: line {number}: is not UTF-8; convert the file") from None
            if text.strip():
                yield f"line {number}", parse_json(text, f"{name}: line {number}")


def _json_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """A list, an object with one list, or JSON Lines with the extension of JSON."""
    with open_bytes(path) as file:
        text = JsonText(file, name)
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


def parse_json(text: str, where: str) -> Any:
    """The value of a text of JSON.

    Raises:
        UserError: it is not JSON, or can't be read.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{where}: {_why_not_json(error, column)}") from None


def _line_too_long() -> str:
    return f"is longer than {MOST_ROW_BYTES >> 20} MiB; split or remove it"


def _why_not_json(error: ValueError | RecursionError, column: str = "") -> str:
    """Why a value can't be read that may be JSON: it is nested too deeply, or a number has more than 4,300 digits."""
    if isinstance(error, RecursionError):
        return "is nested too deeply; make it flatter or remove it"
    return f"is not JSON ({getattr(error, 'msg', error)}{column}); correct or remove it"


class JsonText:
    """The text of a file of JSON, from one place on: a row and the beginning of the next, or up to its end.

    Args:
        file: its bytes.
        name: the file, for errors.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"), name
        self._text, self._at, self._has_more = "", 0, True
        self._row = 0  # the number of the row that is being read

    def is_lines(self) -> bool:
        """Whether it is JSON Lines: its first line is a whole object, and another one begins after it."""
        if self._next() != "{":
            return False
        line, _, rest = self._text[self._at :].partition("\n")
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return False
        return rest.lstrip()[:1] == "{"

    def rows(self) -> Iterator[tuple[str, Any]]:
        """The items of the list, each with its place; of an object, those of its one list."""
        first = self._next()
        if first == "[":
            yield from self._items()
        elif first == "{":
            self._take("{")
            found = None
            while self._next() != "}":
                key = self._value()
                self._take(":")
                if self._next() != "[":
                    self._value()
                elif found is not None:
                    raise self._error(f"has two lists, {found!r:.60} and {key!r:.60}; keep the one of the examples")
                else:
                    found = key
                    yield from self._items()
                self._comma("}")
            self._take("}")
            if found is None:
                raise self._error("is an object without a list; write a list of examples")
        elif first:
            raise self._error(f"begins with {first!r} and is neither a list nor an object; write a list of examples")
        if self._next():
            raise self._error("has more after its end; write one list, or one object a line and the extension .jsonl")

    def _items(self) -> Iterator[tuple[str, Any]]:
        self._take("[")
        while self._next() != "]":
            self._row += 1
            yield f"row {self._row}", self._value()
            self._comma("]")
        self._take("]")

    def _comma(self, end: str) -> None:
        """A comma between two items; after the last one there is none."""
        if self._next() != end:
            self._take(",")
            if self._next() == end:
                raise self._error(f"has a comma before {end!r}; remove it")

    def _take(self, expected: str) -> None:
        found = self._next()
        if found != expected:
            seen = repr(found) if found else "its end"
            raise self._error(f"is not JSON ({expected!r} is missing before {seen}); is it complete? Copy it again")
        self._at += 1

    def _value(self) -> Any:
        """The value that comes next."""
        self._next()
        try:
            value, end = json.JSONDecoder().raw_decode(self._text, self._at)
        except (ValueError, RecursionError) as error:
            open_ended = str(error).startswith("Unterminated") or getattr(error, "pos", 0) >= len(self._text) - 8
            raise self._error(_line_too_long() if self._has_more and open_ended else _why_not_json(error)) from None
        if end - self._at > MOST_ROW_BYTES:
            raise self._error(_line_too_long())
        self._at = end
        return value

    def _next(self) -> str:
        """The next character that is no white space, empty at the end."""
        while True:
            while self._has_more and len(self._text) - self._at < 2 * MOST_ROW_BYTES:
                try:
                    more = self._file.read(MOST_ROW_BYTES)
                except UnicodeDecodeError:
                    raise UserError(f"{self._name}: is not UTF-8; convert the file") from None
                self._text, self._at, self._has_more = self._text[self._at :] + more, 0, bool(more)
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._has_more:
                return ""

    def _error(self, what: str) -> UserError:
        where = f"row {self._row}: " if self._row else ""
        return UserError(f"{self._name}: {where}{what}")
