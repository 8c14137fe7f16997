"""A file of JSON, read row by row: the items of a list, or of the one list of an object.

A file may be larger than the memory, and a row may not: it has at most 4 MiB, or what a reader says.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tpullm.system.errors import UserError

# A million tokens of text. A value of three bytes becomes an object of a hundred, so a row takes 0.1 GB at most.
MOST_ROW_BYTES = 1 << 22
_SPACE = re.compile(r"[ \t\n\r]*")


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


def too_long(most: int = MOST_ROW_BYTES) -> str:
    """What is wrong with a row of more than `most` bytes."""
    return f"is longer than {most >> 20} MiB; split or remove it"


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
        most: bytes of a row.
    """

    def __init__(self, file: BinaryIO, name: str, most: int = MOST_ROW_BYTES):
        self._most = most
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
            raise self._error(too_long(self._most) if self._has_more and open_ended else _why_not_json(error)) from None
        if end - self._at > self._most:
            raise self._error(too_long(self._most))
        self._at = end
        return value

    def _next(self) -> str:
        """The next character that is no white space, empty at the end."""
        while True:
            while self._has_more and len(self._text) - self._at < 2 * self._most:
                try:
                    more = self._file.read(self._most)
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
