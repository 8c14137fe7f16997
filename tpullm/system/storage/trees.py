"""Move and remove folders; sizes, and whether there is room.

On `gs://` a stage counts as finished if its `manifest.json` exists, so that file is removed first.

SHA-256 of files and values; MD5 of many files, against flipped bits.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.storage.paths import is_remote, remote


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def md5s(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """MD5 of the named files below a folder, in base64; a file that is missing has none.

    On `gs://` it is the server's, who computes it of every object that arrives: nothing is read. It is empty there for
    an object that was put together from several.
    """
    if is_remote(folder):
        found = remote().files(folder)
        return {name: found[name].md5 for name in names if name in found}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        digests = dict(zip(names := list(names), threads.map(lambda name: _md5(folder / name), names), strict=True))
    return {name: digest for name, digest in digests.items() if digest is not None}


def _md5(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return base64.b64encode(hashlib.file_digest(file, _new_md5).digest()).decode()
    except FileNotFoundError:
        return None


def _new_md5():
    return hashlib.md5(usedforsecurity=False)


LAST = "manifest.json"


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, if it exists."""
    if is_remote(path):
        names = list(remote().files(path))
        remote().remove_all(path, [name for name in names if name == LAST])
        remote().remove_all(path, [name for name in names if name != LAST])
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it exists and is empty; on `gs://` there are no empty folders."""
    if not is_remote(folder):
        with contextlib.suppress(OSError):
            folder.rmdir()


def move_tree(source: Path, target: Path) -> None:
    """Rename a folder. On `gs://` it is copied on the server and then removed; if killed in between, both exist."""
    if is_remote(source):
        remote().copy_all(source, target, list(remote().files(source)))
        remove_tree(source)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files below a folder, by name relative to the folder, sorted by name."""
    if is_remote(folder):
        return {name: status.st_size for name, status in remote().files(folder).items()}
    found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def files(folder: Path) -> dict[str, Any]:
    """All files below a folder on `gs://`: name relative to the folder -> `gcs.Status`, sorted by name."""
    return remote().files(folder)


def room_for(size: int, folder: Path) -> None:
    """`UserError` if `size` bytes do not fit on the disk of `folder`; `gs://` always has room."""
    if is_remote(folder):
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        found = f"{folder} has {free / 1e6:,.1f} MB, {size / 1e6:,.1f} are needed"
        raise UserError(f"no space left on the device: {found}; free some, or choose another place")
