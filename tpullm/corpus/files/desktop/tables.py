"""Tables → documents: the column that holds the text, a document for each row; without one, all rows as lines.

The column is the one that the source names (`text_key`), else the one with the longest texts.
"""

import csv
import io
import itertools
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files import encodings, opened
from tpullm.corpus.files.desktop.extra import needed

LOOKED_AT, HEAD_BYTES = 200, 1 << 16
LEAST_CHARACTERS, LEAST_WIDE_CHARACTERS = 20, 10  # of the texts of a column, in the middle: a sentence, not a name
LONGEST_NAME = 60
PIECE_CHARACTERS = 1 << 19
DEFAULT_KEY = "text"
CODECS = {"Shift_JIS": "cp932", "EUC-JP": "euc_jp", "ISO-2022-JP": "iso2022_jp", "UTF-16": "utf-16"}


def separated(path: Path, text_key: str) -> Iterator[Raw | None]:
    """The documents of a table with commas, semicolons or tabs between its cells (RFC 4180)."""
    csv.field_size_limit(opened.MOST_RECORD_BYTES)
    with opened.open_bytes(path) as stream:
        head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
        found = encodings.decode_text(head[: head.rfind(b"\n") + 1] or head)
        if found is None:
            raise opened.Unreadable(encodings.not_decoded(head))
        codec = CODECS.get(found.encoding, found.encoding or "utf-8-sig")
        text = io.TextIOWrapper(stream, codec, errors="replace", newline="")
        yield from _documents(csv.reader(text, delimiter=_delimiter(found.text)), text_key)


def _delimiter(head: str) -> str:
    try:
        return csv.Sniffer().sniff("\n".join(head[:20_000].split("\n")[:50]), ",;\t|").delimiter
    except csv.Error:
        return "\t" if "\t" in head.partition("\n")[0] else ","


def workbook(path: Path, text_key: str) -> Iterator[Raw | None]:
    """The documents of all sheets of a workbook of Excel or OpenDocument, by calamine."""
    calamine = needed("python_calamine")
    try:
        book = calamine.CalamineWorkbook.from_path(str(path))
        for name in book.sheet_names:
            sheet = book.get_sheet_by_name(name)
            rows = ([_cell(value) for value in row] for row in sheet.iter_rows())
            yield from _documents(rows, text_key, f"{name}, " if len(book.sheet_names) > 1 else "")
    except calamine.PasswordError:
        raise opened.Unreadable("is protected by a password; save it without") from None
    except calamine.CalamineError as error:
        raise opened.Unreadable(f"is broken ({error}); save it again, or as .csv") from None


def _cell(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _documents(rows: Iterable[list[str]], text_key: str, where: str = "") -> Iterator[Raw | None]:
    """The documents of one table.

    Raises:
        Unreadable: it has no column of the name that the source gives.
    """
    rows = iter(rows)
    try:
        first = list(itertools.islice(rows, LOOKED_AT))
    except csv.Error as error:
        raise opened.Unreadable(f"is no table ({error}); save it again as .csv") from None
    if not first:
        return
    names = [name.strip().lstrip("\ufeff") for name in first[0]]
    column = names.index(text_key) if text_key in names else None
    if column is None and text_key != DEFAULT_KEY:
        raise opened.Unreadable(f"has no column {text_key!r}: its columns are {', '.join(names)}; name another one")
    has_names = column is not None or _are_names(names)
    body = first[1:] if has_names else first
    if column is None:
        column = _column_of_text(body)
    everything = itertools.chain(body, rows)
    start = 2 if has_names else 1
    if column is None:
        yield from _as_lines(itertools.chain(first[:1] if has_names else [], everything), where)
        return
    name = repr(names[column]) if has_names else f"number {column + 1}"
    noted = "" if has_names and names[column] == text_key else f"its column {name} is read"
    for number, row in enumerate(everything, start):
        if column < len(row) and row[column].strip():
            yield Raw(encodings.unix_lines(row[column]).strip() + "\n", record=f"{where}row {number}", noted=noted)
        elif number % LOOKED_AT == 0:
            yield None


def _are_names(row: list[str]) -> bool:
    """Whether a row looks like the names of columns: short, distinct and no numbers."""
    return len({*row}) == len(row) and all(0 < len(name) <= LONGEST_NAME and not _is_number(name) for name in row)


def _is_number(text: str) -> bool:
    return not any(map(str.isalpha, text))


def _column_of_text(rows: list[list[str]]) -> int | None:
    """The column with the longest texts; None if none has sentences."""
    best, found = 0.0, None
    for column in range(max(map(len, rows), default=0)):
        texts = [row[column] for row in rows if column < len(row) and row[column].strip()]
        if not texts or sum(map(_is_number, texts)) > len(texts) / 2:
            continue
        middle = statistics.median(map(len, texts))
        is_wide = sum(text.isascii() for text in texts) < len(texts) / 2
        # A sentence has white space or wide letters; an address of the web has neither.
        is_prose = is_wide or sum(" " in text.strip() for text in texts) > len(texts) / 2
        if is_prose and middle >= (LEAST_WIDE_CHARACTERS if is_wide else LEAST_CHARACTERS) and middle > best:
            best, found = middle, column
    return found


def _as_lines(rows: Iterable[list[str]], where: str) -> Iterator[Raw | None]:
    """All rows as lines, in documents of about `PIECE_CHARACTERS`."""
    lines: list[str] = []
    size, begin = 0, 1
    for number, row in enumerate(rows, 1):
        line = "\t".join(" ".join(cell.split()) for cell in row).strip()
        if line:
            lines.append(line)
            size += len(line)
        if size > PIECE_CHARACTERS:
            yield Raw("\n".join(lines) + "\n", record=f"{where}rows {begin} to {number}")
            lines, size, begin = [], 0, number + 1
    if lines:
        yield Raw("\n".join(lines) + "\n", record=f"{where}rows {begin} to {number}" if begin > 1 or where else "")
