"""Files as bytes, decompressed, within bounds: what expands without end is cut off, and so is a line without end.

Downloads the file of a source, once: it is kept beside the run.
"""

import contextlib
import errno
import hashlib
import http.client
import importlib
import io
import lzma
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tpullm.system import storage
from tpullm.system.errors import UserError

TIMEOUT_SECONDS = 60


def is_url(path: str) -> bool:
    """Whether `path` is an http(s) URL."""
    return path.startswith(("http://", "https://"))


def place(url: str, folder: Path) -> Path:
    """Where in `folder` the file at `url` is kept."""
    name = Path(urllib.parse.urlsplit(url).path).name or "index.html"
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"


def fetch(url: str, folder: Path) -> Path:
    """The file at `url`, downloaded into `folder` unless it is there already.

    A download that breaks off leaves no file, so the next run starts it again.
    """
    path = place(url, folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        storage.remove_partials(folder)
        with storage.atomic_file(path) as temporary:
            _download(url, temporary)
    return path


def _download(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "tpullm"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
            shutil.copyfileobj(response, file)
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; correct the source's path") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{url}: cannot be downloaded ({reason}); check the address and the network, or download it yourself and "
            "write the file's path in its place"
        ) from None
    size = path.stat().st_size
    if expected is not None and size != int(expected):
        raise UserError(f"{url}: the download broke off after {size} of {expected} bytes; run the same command again")


# How large the text of a compressed file may be. Texts shrink to a third, logs to a fiftieth, a bomb to a thousandth.
EXPANDED_TIMES, EXPANDED_BYTES = 200, 1 << 28
BUFFER_BYTES = 1 << 17
# Of one record. JSON of nothing but `{}` takes 30 times its size in memory.
MOST_RECORD_BYTES = 1 << 24
DICTIONARY = b"\x5d\x2a\x4d\x18"  # a frame with the dictionary of a .warc.zst, which comes first
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst", DICTIONARY: ".zst"}
MOST_DICTIONARY_BYTES = 1 << 24
# Errors of the system, not of a file: they end collect.
_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS}


class Unreadable(Exception):
    """A file cannot be read, or not to its end; the message says what is wrong, and goes on after its name."""


class Bomb(Unreadable):
    """A file expands to more than any text would."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What fails in the block because a file is broken is `Unreadable`."""
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) in _SYSTEM:
            raise
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"cannot be read ({reason}); is it complete? Copy or download it again") from None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """The same as a `UserError`, for a file of which nothing may be missing."""
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
        Unreadable: in a block of `reading`, when the file turns out to be broken, or a `Bomb`.
    """
    import bz2
    import gzip

    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _Zstandard}
    opener = openers.get(_compression(path) if by_content else path.suffix.lower())
    with (opener or open)(path, "rb") as file:
        yield io.BufferedReader(_Expanded(file.read1, path), BUFFER_BYTES) if opener else file


def _compression(path: Path) -> str:
    """The extension that fits the first bytes of a file; "" if it is not compressed."""
    with open(path, "rb") as file:
        begin = file.read(8)
    return next((suffix for magic, suffix in MAGIC.items() if begin.startswith(magic)), "")


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
            raise Bomb(f"is more than {EXPANDED_TIMES} times as large as its file; unpack it yourself if that is right")
        buffer[: len(data)] = data
        return len(data)


def zstandard() -> Any:
    """The module for Zstandard: Python's own from 3.14 on, before that the same by its authors."""
    return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


class _Zstandard:
    """A file in Zstandard, of one frame or of many, with a dictionary at its beginning or without."""

    def __init__(self, path: Path, mode: str):
        self._module = zstandard()
        with _zstandard_errors(self._module):
            self._file = self._module.open(path, mode, zstd_dict=self._dictionary(path))

    def __enter__(self) -> "_Zstandard":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read1(self, size: int) -> bytes:
        with _zstandard_errors(self._module):
            return self._file.read1(size)

    def _dictionary(self, path: Path) -> Any:
        """The dictionary in the first frame (Internet Archive, WARC with Zstandard); None if there is none."""
        with open(path, "rb") as file:
            if file.read(4) != DICTIONARY:
                return None
            data = file.read(min(int.from_bytes(file.read(4), "little"), MOST_DICTIONARY_BYTES))
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            data = self._module.ZstdDecompressor().decompress(data, MOST_DICTIONARY_BYTES)
        return self._module.ZstdDict(data)


@contextlib.contextmanager
def _zstandard_errors(module: Any) -> Iterator[None]:
    try:
        yield
    except (module.ZstdError, ValueError) as error:
        raise OSError(f"{error}") from None


def lines(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin at the bytes `start` to `stop`, each with its place; None for one that is far too long.

    Ranges that follow each other give each line of a file once.
    """
    place = next_line(file, start)
    while stop is None or place < stop:
        line, after = _line(file, place)
        if after == place:
            return
        yield place, line
        place = after


def next_line(file: BinaryIO, place: int) -> int:
    """Go to the first line that begins at `place` or later, and return where that is."""
    return _line(file, file.seek(place - 1))[1] if place else 0


def _line(file: BinaryIO, place: int) -> tuple[bytes | None, int]:
    """The next line, or None if it is longer than `MOST_RECORD_BYTES`, and the place after it."""
    line = file.readline(MOST_RECORD_BYTES)
    place += len(line)
    if len(line) < MOST_RECORD_BYTES or line.endswith(b"\n"):
        return line, place
    while rest := file.readline(BUFFER_BYTES):
        place += len(rest)
        if rest.endswith(b"\n"):
            break
    return None, place
