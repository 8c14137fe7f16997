"""Hashes of everything that the documents depend on beside the recipe. When one changes, `collect` runs again."""

import functools
import platform
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.corpus import domains, tenki
from tpullm.corpus.files import download, source_files
from tpullm.recipe.schema import Source

HASHED_BYTES = 1 << 30  # of a larger file, size and time are compared: hashing it takes seconds at each start


def upstream(found: list[Source]) -> dict[str, Any]:
    """Hashes of local files, and the versions of Python, of packages and of tenki, as far as the sources use them.

    tenki is named by `tenki.VERSION` and not by the hash of its source files: a changed comment changes no document.
    """
    hashes: dict[str, Any] = {}
    for source in found:
        if source.kind == "python":
            hashes["python"] = platform.python_version()
        elif source.kind == "tenki":
            hashes["tenki"] = tenki.VERSION
        elif source.kind in domains.SOURCES:
            hashes |= domains.identity(source.kind, source.path)
        else:
            hashes[source.name] = at(source.path, source.held_out)
    return hashes


def at(*locations: str) -> list[Any]:
    """The hashes of the files at some locations. A URL stands for itself, since its file is downloaded once."""
    return [_at(location) for location in locations if location]


def _at(location: str) -> Any:
    if download.is_url(location):
        return location
    path = storage.path(location)
    found = [(path, path.stat())] if path.is_file() else source_files.walk(path)
    looked = ((file, status or source_files.status_of(file)) for file, status in found)
    return {
        source_files.printable(str(file.relative_to(path))): _identity(file, status)
        for file, status in looked
        if status
    }


def _identity(path: Path, status: Any) -> str:
    if storage.is_remote(path):  # without reading it
        return f"{status.st_size} bytes, {status.digest}"
    if status.st_size > HASHED_BYTES:
        return f"{status.st_size} bytes at {status.st_mtime_ns}"
    return _hash(path, status.st_size, status.st_mtime_ns)


def of_file(path: Path) -> str:
    """The identity of one file: its hash, or its size and time where that is quicker."""
    return _identity(path, _remote(path.parent)[path.name] if storage.is_remote(path) else path.stat())


@functools.cache
def _remote(folder: Path) -> dict[str, Any]:
    return storage.files(folder)


@functools.cache
def _hash(path: Path, size: int, time: int) -> str:
    """The hash of a file, which is read once by a process while its size and time are the same."""
    return storage.hash_file(path)
