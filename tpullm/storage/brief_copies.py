"""Copies of `gs://` objects that are there while a process reads them: a source may be larger than any disk.

    ~/.cache/tpullm/brief.lock           held by who looks which copies there are, and removes some
    ~/.cache/tpullm/brief/KEY/lock       its readers share it; KEY is the hash of the address and the generation
    ~/.cache/tpullm/brief/KEY/copy/NAME

Who needs a copy that is not there first removes those that nobody reads, whoever made them: a process that was killed
can't. So there is never more than one file for each process that reads. A copy that was read stays until then: the
ranges of a large file are read from one copy.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tpullm.storage.atomic import atomic_directory, remove_partials
from tpullm.storage.copies import cache_folder, check_private, status_of
from tpullm.storage.hashing import hash_json
from tpullm.storage.paths import is_remote, remote
from tpullm.storage.trees import remove_tree, room_for

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
        with contextlib.ExitStack() as held:
            with _alone():
                found = copied.exists()
                lock = held.enter_context(_opened(home / LOCK))
                free = _locks(lock, fcntl.LOCK_SH if found else fcntl.LOCK_EX)
                if free and not found:
                    _remove_unread()
            if not free:
                fcntl.flock(lock, fcntl.LOCK_SH)  # until who copies it has done so, or failed; then look again
                continue
            if not found:
                _fetch(path, status.st_size, home)
                with _alone():  # or the copy could be removed while one kind of lock becomes the other
                    fcntl.flock(lock, fcntl.LOCK_SH)
            yield copied
            return


def _fetch(path: Path, size: int, home: Path) -> None:
    remove_partials(home)  # of a process that was killed
    room_for(size, home)
    with atomic_directory(home / COPY) as folder:
        remote().download_all(path.parent, folder, [path.name])


def remove_unread_copies() -> None:
    """Remove the copies that no process reads."""
    if cache_folder(FOLDER).exists():
        with _alone():
            _remove_unread()


def _remove_unread() -> None:
    for home in cache_folder(FOLDER).glob("*"):
        with _opened(home / LOCK) as lock:
            if _locks(lock, fcntl.LOCK_EX):
                remove_tree(home)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other process finds, begins or removes a copy meanwhile; who reads or downloads one goes on."""
    with _opened(cache_folder(FOLDER).with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> BinaryIO:
    """The file of a lock, which is made if it is not there. NFS locks by how a file is open: for both kinds."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return open(path, "a+b")


def _locks(lock: BinaryIO, how: int) -> bool:
    """Lock a file if that is possible at once."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
