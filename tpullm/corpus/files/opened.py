"""What strangers wrote, read within bounds: bytes that expand, lines without end, hostile pages and Parquet.

A compressed file is cut off where it becomes larger than any text would, and a line where it is longer than any record.
Pages and Parquet may cost hours, memory or a crash of their library, so each process has a child with limits that reads
them (`system/process/limited.py`).
"""

import contextlib
import errno
import functools
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited

# How large the text of a compressed file may be. Texts shrink to a third, logs to a fiftieth, a bomb to a thousandth.
EXPANDED_TIMES, EXPANDED_BYTES = 200, 1 << 28
BUFFER_BYTES = 1 << 17
# Of one record. JSON of nothing but `{}` takes 30 times its size in memory.
MOST_RECORD_BYTES = 1 << 24
ZSTANDARD = b"\x28\xb5\x2f\xfd"
DICTIONARY = b"\x5d\x2a\x4d\x18"  # a frame with the dictionary of a .warc.zst, which comes first
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", ZSTANDARD: ".zst", DICTIONARY: ".zst"}
MOST_DICTIONARY_BYTES = 1 << 24
# Errors of the system, not of a file: they end collect.
_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS}
_WHAT = "\0"
_child_that_reads = functools.cache(Limited)


class Unreadable(Exception):
    """A file cannot be read, or not to its end; the message says what is wrong, and goes on after its name."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What fails in the block because a file is broken is `Unreadable`."""
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard().ZstdError) as error:
        if getattr(error, "errno", None) in _SYSTEM:
            raise
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"cannot be read ({reason}); is it complete? Copy or download it again") from None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """The same as a `UserError`, for a file that must be read completely."""
    try:
        with reading():
            yield
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None


@contextlib.contextmanager
def open_bytes(path: Path, by_content: bool = False) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed.

    Args:
        path: the file.
        by_content: whether its first bytes say how it is compressed, instead of its extension.

    Raises:
        Unreadable: in a block of `reading`, when the file turns out to be broken, or expands without bound.
    """
    import bz2
    import gzip

    suffix = path.suffix.lower()
    if by_content:
        with open(path, "rb") as file:
            begin = file.read(8)
        suffix = next((suffix for magic, suffix in MAGIC.items() if begin.startswith(magic)), "")
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}.get(suffix, open)
    with opener(path, "rb") as file:
        yield file if opener is open else io.BufferedReader(_Expanded(file.read1, path), BUFFER_BYTES)


class _Expanded(io.RawIOBase):
    """The decompressed bytes of a file, as long as they are not many more than any text would be.

    Its `read` returns what is there, so that the text before a cut is read.
    """

    def __init__(self, read: Callable[[int], bytes], path: Path):
        self._read = read
        self._left = max(EXPANDED_BYTES, EXPANDED_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            size = f"more than {EXPANDED_TIMES} times as large as its file"
            raise Unreadable(f"is {size}; unpack it yourself if that is right")
        buffer[: len(data)] = data
        return len(data)


def zstandard() -> Any:
    """The module for Zstandard: Python's own from 3.14 on, before that the same by its authors."""
    return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def _open_zstandard(path: Path, mode: str) -> Any:
    """A file in Zstandard, of one frame or of many. The first may be a dictionary (Internet Archive, WARC)."""
    module, dictionary = zstandard(), None
    with open(path, "rb") as file:
        if file.read(4) == DICTIONARY:
            data = file.read(min(int.from_bytes(file.read(4), "little"), MOST_DICTIONARY_BYTES))
            if data.startswith(ZSTANDARD):
                data = module.ZstdDecompressor().decompress(data, MOST_DICTIONARY_BYTES)
            try:
                dictionary = module.ZstdDict(data)
            except ValueError as error:
                raise OSError(f"{error}") from None
    return module.open(path, mode, zstd_dict=dictionary)


def lines(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin at the bytes `start` to `stop`, each with its place; None for one that is far too long.

    Ranges that follow each other give each line of a file once.
    """
    place = next_line(file, start, stop)
    while stop is None or place < stop:
        line, after = _next_bounded_line(file, place)
        if after == place:
            return
        yield place, line
        place = after


def next_line(file: BinaryIO, place: int, stop: int | None = None) -> int:
    """Go to the first line that begins at `place` or later, and return where that is; `stop` or later: there is none.

    A line without end is not read to its end by each range that lies in it.
    """
    return _line_end(file, file.seek(place - 1), stop) if place else 0


def _line_end(file: BinaryIO, place: int, stop: int | None = None) -> int:
    while (stop is None or place < stop) and (data := file.readline(BUFFER_BYTES)):
        place += len(data)
        if data.endswith(b"\n"):
            break
    return place


def _next_bounded_line(file: BinaryIO, place: int) -> tuple[bytes | None, int]:
    """The next line, or None if it is longer than `MOST_RECORD_BYTES`, and the place after it."""
    line = file.readline(MOST_RECORD_BYTES)
    place += len(line)
    if len(line) < MOST_RECORD_BYTES or line.endswith(b"\n"):
        return line, place
    return None, _line_end(file, place)


def in_child(function: str, *arguments: Any) -> Any:
    """The result of `module:name`, called in the child; it starts with the first call, and again after an end.

    Raises:
        Unreadable: the function fails, or takes more than the limits.
    """
    try:
        return _child_that_reads().call(_WHAT, function, *arguments)
    except UserError as error:
        raise Unreadable(str(error).replace(f"{_WHAT}: ", "").replace(", do not use it", "")) from None


def close_child() -> None:
    """End the child, if there is one; for a process that goes on after it has read."""
    if _child_that_reads.cache_info().currsize:
        _child_that_reads().close()
