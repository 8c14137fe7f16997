"""The files in a zip file, read as those of a folder are.

The list is read in a child, and the sizes that it names are held to a bound before anything is unpacked: a bomb is
refused as a whole. A file is unpacked when it is read, up to the size that the list names, and removed afterwards.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tpullm.corpus.files import opened
from tpullm.system.errors import UserError

MOST_MEMBERS = 100_000
UNPACK = "unpack it yourself, and name the folder"
ENCRYPTED = 1  # a flag of a member


def members(path: Path) -> list[tuple[str, int]]:
    """The names and sizes of the files in a zip file, in the order of their names.

    Raises:
        Unreadable: it is broken, protected, or too large for its size.
    """
    return [(str(name), int(size)) for name, size in opened.in_child(f"{__name__}:listed", str(path))]


def listed(path: str) -> list[list]:
    """In the child: `members`. What is hidden is left out, and what a Mac adds."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [one for one in archive.infolist() if not one.is_dir() and not _is_hidden(one.filename)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"is no zip file or is cut off ({error}); copy or download it again") from None
    size = sum(one.file_size for one in found)
    most = max(opened.EXPANDED_BYTES, opened.EXPANDED_TIMES * os.stat(path).st_size)
    if size > most:
        times = f"more than {opened.EXPANDED_TIMES} times as large as its file"
        raise UserError(f"becomes {size:,} bytes, {times}; {UNPACK} if that is right")
    if len(found) > MOST_MEMBERS:
        raise UserError(f"holds {len(found):,} files, more than {MOST_MEMBERS:,}; {UNPACK}")
    if any(one.flag_bits & ENCRYPTED for one in found):
        raise UserError(f"is protected by a password; {UNPACK}")
    return sorted([one.filename, one.file_size] for one in found)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") or part in ("__MACOSX", "__pycache__") for part in parts)


def name_of(member: str) -> str:
    """The name of a member for people: programs of Windows write names in the encoding of their country."""
    try:
        data = member.encode("cp437")  # which Python took it for
        return member if data.isascii() else data.decode("cp932")
    except UnicodeError:
        return member


def head(path: Path, member: str, count: int) -> bytes:
    """The first bytes of a file of a zip file.

    Raises:
        Unreadable: it is broken.
    """
    with _reading(), _open(path, member) as source:
        return source.read(count)


@contextlib.contextmanager
def unpacked(path: Path, member: str) -> Iterator[Path]:
    """A file of a zip file, for as long as the block.

    Raises:
        Unreadable: it is broken.
    """
    with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
        target = Path(folder) / f"member{''.join(PurePosixPath(member).suffixes[-2:])[-40:]}".replace("/", "")
        with _reading(), _open(path, member) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, opened.BUFFER_BYTES)  # `zipfile` gives no more than the list names
        yield target


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise opened.Unreadable(f"can't be unpacked ({error}); {UNPACK}") from None


def _open(path: Path, member: str) -> IO[bytes]:
    status = path.stat()
    return _archive(path, status.st_size, status.st_mtime_ns).open(member)


@functools.lru_cache(1)
def _archive(path: Path, size: int, time: int) -> zipfile.ZipFile:
    """An open zip file: a list of many thousand files takes a second to read."""
    return zipfile.ZipFile(path)
