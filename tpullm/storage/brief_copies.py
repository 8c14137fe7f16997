"""Copies of `gs://` objects that are there while a process reads them: a source may be larger than any disk.

    ~/.cache/tpullm/brief/KEY/lock       its readers share it; KEY is the hash of the address and the generation
    ~/.cache/tpullm/brief/KEY/copy/NAME

Who needs a copy that is not there first removes those that nobody reads, whoever made them: a process that was killed
can't. So there is never more than one file for each process that reads. A copy that was read stays until then: the
ranges of a large file are read from one copy.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tpullm.storage.atomic import atomic_directory, remove_partials
from tpullm.storage.copies import cache_folder, check_private, status_of
from tpullm.storage.hashing import hash_json
from tpullm.storage.paths import is_remote, remote
from tpullm.storage.trees import remove_empty, remove_tree, room_for

FOLDER, LOCK, COPY = "brief", "lock", "copy"


@contextlib.contextmanager
def brief_copy(path: Path) -> Iterator[Path]:
    """`path` itself if it is local; of a file on `gs://` a copy of its present version, for as long as the block.

    Raises:
        UserError: there is no such file, its name leads elsewhere, or others may write in the cache.
    """
    if not is_remote(path):
        yield path
        return
    status = status_of(path)
    home = cache_folder(FOLDER) / hash_json([str(path), status.generation])[:16]
    copied = home / COPY / path.name
    check_private(home.parent, path)
    while True:
        with _locked(home, fcntl.LOCK_SH):
            if copied.exists():
                yield copied
                return
        with _locked(home, fcntl.LOCK_EX):  # one process copies; others wait and find its copy
            if not copied.exists():
                remove_unread_copies()
                _fetch(path, status.st_size, home)


def _fetch(path: Path, size: int, home: Path) -> None:
    remove_partials(home)  # of a process that was killed
    room_for(size, home)
    with atomic_directory(home / COPY) as folder:
        remote().download_all(path.parent, folder, [path.name])


def remove_unread_copies() -> None:
    """Remove the copies that no process reads."""
    for home in cache_folder(FOLDER).glob("*"):
        with contextlib.suppress(BlockingIOError), _locked(home, fcntl.LOCK_EX | fcntl.LOCK_NB):
            remove_tree(home / COPY)
            remove_partials(home)
            (home / LOCK).unlink()  # last: who finds no lock makes a new one
        remove_empty(home)


def _locked(home: Path, how: int) -> BinaryIO:
    """The open lock of a folder, which is made if it is not there; `BlockingIOError` if `how` is not to wait."""
    while True:
        with contextlib.suppress(FileExistsError):  # `exist_ok` fails if it is removed just then
            home.mkdir(mode=0o700, parents=True)
        with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError):
            lock = opened.enter_context(open(home / LOCK, "a+b"))  # NFS locks by how a file is open
            fcntl.flock(lock, how)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(home / LOCK)):  # else it was removed meanwhile
                opened.pop_all()
                return lock
