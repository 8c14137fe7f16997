"""Files of examples → rows: JSON Lines, JSON and Parquet, a folder of these, here or on `gs://`.

What others made is read within bounds: a row has at most 4 MiB, a file of JSON is read row by row, and a child with
limits reads Parquet.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension, walk
from tpullm.data.examples.json_rows import MOST_ROW_BYTES, JsonText, parse
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.process.limited import Limited


def files(name: str, what: str) -> list[Path]:
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
    there = [file for file, status in walk(path) if status or file.is_file()]
    found = [file for file in there if extension(file) in READERS]
    if not found:
        raise UserError(f"{path}: has no file of {what}; it may have {' '.join(READERS)}")
    if others := len(there) - len(found):
        say(f"{path}: {others:,} other files are not read ({' '.join(READERS)} are)")
    return found


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file in their order, each with where it is. A file of another extension is JSON Lines.

    Raises:
        UserError: the file is broken, or a row is not an object; the error says where.
    """
    with readable(path):
        local = storage.local_copy(path)
        storage.check_file(local)
        for place, row in READERS.get(extension(path), _lines)(local, str(path)):
            if not isinstance(row, dict):
                raise UserError(f"{path}: {place}: is not an object; write one JSON object for each example")
            yield f"{path}: {place}", row


def _lines(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(MOST_ROW_BYTES + 1):
            number += 1
            if len(line) > MOST_ROW_BYTES:
                raise UserError(f"{name}: line {number}: is longer than {MOST_ROW_BYTES >> 20} MiB; split or remove it")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{name}: line {number}: is not UTF-8; convert the file") from None
            if text.strip():
                yield f"line {number}", parse(text, f"{name}: line {number}")


def _json(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """A list, an object with one list, or JSON Lines with the extension of JSON."""
    with open_bytes(path) as file:
        text = JsonText(file, name)
        if not text.is_lines():
            yield from text.rows()
            return
    yield from _lines(path, name)


def _parquet(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    number = 0
    with contextlib.closing(Limited()) as child:
        while batch := child.call(name, "tpullm.data.examples.parquet_rows:more", str(path), name):
            if not isinstance(batch, list):
                raise UserError(f"{name}: its rows can't be read; it is broken or hostile, do not use it")
            for row in batch:
                number += 1
                yield f"row {number}", row


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".parquet": _parquet,
}
