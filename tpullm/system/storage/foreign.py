"""Names and files that others made: a name stays in its folder, and a file is one, whole, and not too large to read."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from tpullm.system.errors import UserError

LONGEST_PART = 255  # bytes of one part of a name: what Linux's and macOS's file systems keep


def check_names(names: Iterable[str], where: Path | str) -> None:
    """Refuse names that would not stay below a folder, or that no folder can hold together.

    Every name that comes out of a listing, an index or an archive passes here before it becomes a path.

    Args:
        names: relative to the folder, with `/` between their parts.
        where: what names them: the beginning of the error.

    Raises:
        UserError: a part is empty, `.`, `..` or too long, a name is absolute, holds a null or no UTF-8, or one name is
            the folder of another.
    """
    names, above = list(names), {}
    for name in names:
        if why := _why_not_relative(name):
            raise UserError(f"{where}: {name!r:.120} {why}; nothing was read, rename it where it comes from")
        parts = name.split("/")
        above |= {"/".join(parts[:count]): name for count in range(1, len(parts))}
    if one := next(filter(above.get, names), ""):
        raise UserError(f"{where}: {one!r:.120} is a file and the folder of {above[one]!r:.120}; rename one of them")


def _why_not_relative(name: str) -> str:
    """Why a name is no relative path of a file; empty if it is one."""
    parts = name.split("/")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        return "is no name of a file"
    if any(part in ("", ".", "..") for part in parts):
        return "does not stay in its folder"
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        return f"has a part of more than {LONGEST_PART} bytes"
    return ""


def inside(folder: Path, name: str, where: Path | str) -> Path:
    """The file of a name that another file gives, without leaving `folder`.

    A link may lead to another file of the folder, or to what `hf` fetched: `models--NAME/blobs/HASH`.

    Raises:
        UserError: the name, or the link of that name, leads out of the folder.
    """
    check_names([name], where)
    target = (folder / name).resolve()
    fetched = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not (target.is_relative_to(folder.resolve()) or fetched):
        raise UserError(f"{folder / name}: is a link that leads out of its folder; copy the file there instead")
    return folder / name


def check_file(path: Path) -> int:
    """The bytes of a file that may be read; a missing file is a `FileNotFoundError`.

    Raises:
        UserError: it is no file (but a folder, a pipe, a device), or most of it was never written.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is no file; put the file itself there")
    if status.st_blocks * 512 < status.st_size // 2:
        hole = status.st_size
        with open(path, "rb") as file, contextlib.suppress(OSError):  # not every file system knows its holes
            hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        if hole < status.st_size:
            raise UserError(f"{path}: most of its {status.st_size:,} bytes were never written; fetch it again")
    return status.st_size


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """All bytes of a file; a missing file is a `FileNotFoundError`.

    Raises:
        UserError: it is no file, is not whole, or is larger than `most_bytes`.
    """
    if (size := check_file(path)) > most_bytes:
        raise UserError(f"{path}: has {size:,} bytes, more than the {most_bytes:,} that such a file may have")
    with open(path, "rb") as file:
        return file.read(most_bytes)


def writable_by_others(folder: Path) -> str:
    """Why others may have written what is in a folder; empty if nobody but this user and root can."""
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written by other users"
    return ""
