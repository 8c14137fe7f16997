"""Copies of files, above all those of `gs://` objects in the user's cache folder."""

import fcntl
import os
import shutil
import time
from pathlib import Path

from tpullm.errors import UserError
from tpullm.storage.atomic import atomic_directory
from tpullm.storage.hashing import hash_json
from tpullm.storage.paths import is_remote, remote
from tpullm.storage.trees import room_for

LOCK = ".lock"
SECONDS_IN_USE = 86_400.0  # another process may still read a copy of an older version


def cache_folder(name: str) -> Path:
    """A folder for what can be made again: `~/.cache/tpullm/NAME`, or below `XDG_CACHE_HOME`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "tpullm" / name


def copy(source: Path, target: Path) -> None:
    """Copy a file; atomic if `target` is on `gs://`."""
    if is_remote(target):
        target.write_bytes(source.read_bytes())
    else:
        shutil.copyfile(local_copy(source), target)


def local_copy(path: Path) -> Path:
    """`path` itself if it is local; for a file or folder on `gs://` a copy of its present version in the cache folder.

    Raises:
        UserError: there is no such file or folder.
    """
    if not is_remote(path):
        return path
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    found = remote().files(path) if status.is_directory else {path.name: status}
    version = hash_json({name: status.generation for name, status in found.items()})[:16]
    home = cache_folder("objects") / hash_json(str(path))[:16]
    copied = home / version / path.name
    if not copied.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(home / LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process copies; others wait and find its copy
            if not copied.exists():
                room_for(sum(status.st_size for status in found.values()), home)
                with atomic_directory(home / version) as folder:
                    into = (path, folder / path.name) if status.is_directory else (path.parent, folder)
                    remote().download_all(*into, list(found))
                _remove_old(home, version)
    return copied


def _remove_old(home: Path, version: str) -> None:
    """Remove copies of other versions that no process can be reading any more."""
    for other in home.iterdir():
        if other.name not in (version, LOCK) and other.stat().st_mtime < time.time() - SECONDS_IN_USE:
            shutil.rmtree(other, ignore_errors=True)
