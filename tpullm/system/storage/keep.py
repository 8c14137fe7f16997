"""Bytes that take long to make, kept in the cache folder for the next process. They may be code that is executed.

So nothing is read from a folder that another user may have written, and a file that is not as it was written is made
again.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpullm.system.storage.atomic import atomic_file
from tpullm.system.storage.copies import cache_folder, make_private
from tpullm.system.storage.paths import hash_json

MOST_BYTES = 1 << 28  # of all that has one name
_MOST_FILES = 10_000
_DIGEST = hashlib.sha256().digest_size  # bytes of a checksum, with which a file begins


def kept(name: str, key: Any, make: Callable[[], bytes]) -> bytes:
    """What `make` returns; from the cache folder, if a process made it before.

    Args:
        name: of the folder there.
        key: JSON of all that the bytes depend on.
    """
    path, is_private, found = cache_folder(name) / hash_json(key), False, b""
    with contextlib.suppress(OSError):
        is_private = path.is_absolute() and not make_private(path.parent)
        found = path.read_bytes() if is_private else b""
    if hashlib.sha256(found[_DIGEST:]).digest() == found[:_DIGEST]:
        return found[_DIGEST:]
    made = make()
    if is_private:
        with contextlib.suppress(OSError):  # without room it is made each time
            with atomic_file(path) as temporary:
                temporary.write_bytes(hashlib.sha256(made).digest() + made)
            shrink(path.parent, MOST_BYTES)
    return made


def shrink(home: Path, most_bytes: int) -> None:
    """Remove the least recently used files of a folder, and of those in it, until at most `most_bytes` are left, in
    10,000 files.
    """
    entries = []
    for path in filter(Path.is_file, home.rglob("*")):
        with contextlib.suppress(OSError):
            status = path.stat()
            # Of a last use; file systems may record one a day late.
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    for number, (_, size, path) in enumerate(sorted(entries, reverse=True)):
        most_bytes -= size
        if most_bytes < 0 or number >= _MOST_FILES:
            with contextlib.suppress(OSError):
                path.unlink()
