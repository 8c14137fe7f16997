"""Hashes of everything that the documents depend on beside the recipe. When one changes, `collect` runs again."""

import platform
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.corpus import domains, download, source_files, tenki
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
            hashes[source.name] = [_at(path) for path in (source.path, source.held_out) if path]
    return hashes


def _at(location: str) -> Any:
    """The hashes of the files at a location. A URL stands for itself, since its file is downloaded once."""
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
    return storage.hash_file(path)
