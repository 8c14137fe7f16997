"""Copies of files, above all those of `gs://` objects in the user's cache folder.

`local_copy` keeps a copy for the processes that come later. `brief_copy` keeps it for as long as a process reads it,
since a source may be larger than any disk:

    ~/.cache/tpullm/brief.lock           held by who looks which copies there are, and removes some
    ~/.cache/tpullm/brief/KEY/lock       its readers share it; KEY is the hash of the address and the generation
    ~/.cache/tpullm/brief/KEY/copy/NAME

A process that needs a new copy first removes all copies without a reader, also those of other processes: a process that
was killed can't. So there is never more than one file for each process that reads. A copy that was read stays until
then: the ranges of a large file are read from one copy.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tpullm.system.errors import UserError
from tpullm.system.storage.atomic import atomic_directory, remove_partials
from tpullm.system.storage.foreign import check_names, writable_by_others
from tpullm.system.storage.paths import hash_json, is_remote, remote, remove_tree, room_for

LOCK = ".lock"
SECONDS_IN_USE = 86_400.0  # another process may still read a copy of an older version


def cache_folder(name: str) -> Path:
    """A folder for what can be made again: `~/.cache/tpullm/NAME`, or below `XDG_CACHE_HOME`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "tpullm" / name


def make_private(folder: Path) -> str:
    """Make a folder in the cache, for this user alone.

    Returns:
        Why others may have written what is in it (it was there before, or a folder above it is theirs); else nothing.
    """
    root = cache_folder("")
    places = [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]
    for place in reversed(places):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = root.parent.stat().st_mode  # where others write, they can put another folder in the place of ours
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return f"{root.parent} can be written by other users"
    return next(filter(None, map(writable_by_others, places)), "")


def copy(source: Path, target: Path) -> None:
    """Copy a file; atomic if `target` is on `gs://`."""
    if is_remote(target):
        target.write_bytes(source.read_bytes())
    else:
        shutil.copyfile(local_copy(source), target)


def local_copy(path: Path) -> Path:
    """`path` itself if it is local; for a file or folder on `gs://` a copy of its present version in the cache folder.

    Raises:
        UserError: there is no such file or folder, a name in it leads out of it, or others may write in the cache.
    """
    if not is_remote(path):
        return path
    status = status_of(path)
    found = remote().files(path) if status.is_directory else {path.name: status}
    version = hash_json({name: status.generation for name, status in found.items()})[:16]
    home = cache_folder("objects") / hash_json(str(path))[:16]
    copied = home / version / path.name
    check_private(home, path)
    if not copied.exists():
        with open(home / LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process copies; others wait and find its copy
            if not copied.exists():
                room_for(sum(status.st_size for status in found.values()), home)
                with atomic_directory(home / version) as folder:
                    into = (path, folder / path.name) if status.is_directory else (path.parent, folder)
                    remote().download_all(*into, list(found))
                for other in home.iterdir():  # versions that no process can be reading any more
                    if other.name not in (version, LOCK) and other.stat().st_mtime < time.time() - SECONDS_IN_USE:
                        shutil.rmtree(other, ignore_errors=True)
    return copied


def status_of(path: Path) -> Any:
    """The `gcs.Status` of what is at a `gs://` path; `UserError` if there is nothing, or its name leads elsewhere."""
    check_names([path.name], path.parent)
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None


def check_private(folder: Path, path: Path | str) -> None:
    """Make a folder in the cache; `UserError` if others may write the copy of `path` there."""
    if why := make_private(folder):
        raise UserError(f"{why}: no copy of {path} can be trusted there; set XDG_CACHE_HOME to a folder of your own")


FOLDER, BRIEF_LOCK, COPY = "brief", "lock", "copy"


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
            with _alone_with_copies():
                found = copied.exists()
                lock = held.enter_context(_open_lock_file(home / BRIEF_LOCK))
                free = _try_to_lock(lock, fcntl.LOCK_SH if found else fcntl.LOCK_EX)
                if free and not found:
                    _remove_unlocked_copies()
            if not free:
                fcntl.flock(lock, fcntl.LOCK_SH)  # until who copies it has done so, or failed; then look again
                continue
            if not found:
                remove_partials(home)  # of a process that was killed
                room_for(status.st_size, home)
                with atomic_directory(home / COPY) as folder:
                    remote().download_all(path.parent, folder, [path.name])
                with _alone_with_copies():  # or the copy could be removed while one kind of lock becomes the other
                    fcntl.flock(lock, fcntl.LOCK_SH)
            yield copied
            return


def remove_unread_copies() -> None:
    """Remove the copies that no process reads."""
    if cache_folder(FOLDER).exists():
        with _alone_with_copies():
            _remove_unlocked_copies()


def _remove_unlocked_copies() -> None:
    for home in cache_folder(FOLDER).glob("*"):
        with _open_lock_file(home / BRIEF_LOCK) as lock:
            if _try_to_lock(lock, fcntl.LOCK_EX):
                remove_tree(home)


@contextlib.contextmanager
def _alone_with_copies() -> Iterator[None]:
    """No other process finds, begins or removes a copy meanwhile; who reads or downloads one goes on."""
    with _open_lock_file(cache_folder(FOLDER).with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open_lock_file(path: Path) -> BinaryIO:
    """The file of a lock, which is made if it is not there. NFS locks by how a file is open: for both kinds."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return open(path, "a+b")


def _try_to_lock(lock: BinaryIO, how: int) -> bool:
    """Lock a file if that is possible at once."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        return True
    return False
