"""Files, here or on `gs://`: every write is atomic, every hash is SHA-256.

A path is a `pathlib.Path`, or for `gs://` one of `bucket.py` that has the methods `/`, name, parent, exists, is_dir,
is_file, iterdir, glob, stat, open, read_text, read_bytes, write_text, write_bytes, unlink and mkdir as well. What else
is done with a path is done by the functions here, so nothing else has to know of which kind one is.

Here a file or folder is written beside its place and renamed. On `gs://` a file is one request, and a folder is sent
file by file, its `manifest.json` last: a stage is finished if that is there.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.errors import UserError
from tpullm.storage.cache import cache_folder

BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
LAST = "manifest.json"
LOCK = ".lock"
_GIVEN_UP = re.compile("retry attempts failed|PERMISSION_DENIED|UNAUTHENTICATED|CURL error|UNAVAILABLE")


def path(text: str | Path) -> Path:
    """What a path of the command line or of a recipe names: an absolute path here, or one of `gs://`.

    Raises:
        UserError: another scheme, no bucket, or gcsfs is not installed.
    """
    if is_remote(text):
        if not BUCKET.fullmatch(str(text).removeprefix("gs://").split("/")[0]):
            raise UserError(f"{text}: names no bucket; write gs://BUCKET/FOLDER, the bucket in small letters")
        return remote().path(str(text))
    if "://" in str(text):
        raise UserError(f"{text}: only local paths and gs:// are supported; copy it to one of them")
    return Path(text).expanduser().absolute()


def is_remote(path: str | Path) -> bool:
    """Whether it is on `gs://`."""
    return str(path).startswith("gs://")


def remote():
    """What is done with objects of `gs://` alone; `UserError` if gcsfs is not installed."""
    try:
        from tpullm.storage import gcs
    except ModuleNotFoundError as error:
        raise UserError(f"gs:// needs {error.name}, which is not installed; pip install 'tpullm[gcp]'") from None
    return gcs


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary local path; it becomes `path` when the block ends, and is removed if it fails."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            yield Path(folder) / path.name
            remote().upload(Path(folder) / path.name, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path, replaces: bool = True) -> Iterator[Path]:
    """Yield an empty temporary local folder; it replaces `path` when the block ends, is removed if it fails.

    On `gs://` what was there goes first and `manifest.json` comes last, so that a folder with one is whole.

    Args:
        replaces: whatever is in `path`; else an empty folder alone.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            yield Path(folder)
            _replace_remote(Path(folder), path, replaces)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _sync(written)
        if replaces:
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(temporary, path)  # over an empty folder too
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise UserError(f"{path}: is not an empty folder any more; choose another one") from None
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_remote(folder: Path, target: Path, replaces: bool) -> None:
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    if not replaces and target.exists():
        raise UserError(f"{target}: is not an empty folder any more; choose another one")
    remove_tree(target)
    remote().upload_all(folder, target, [name for name in names if name != LAST])
    remote().upload_all(folder, target, [name for name in names if name == LAST])


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it, if it is there; its `manifest.json` first."""
    if is_remote(path):
        names = list(remote().files(path))
        remote().remove_all(path, [name for name in names if name == LAST])
        remote().remove_all(path, [name for name in names if name != LAST])
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is there and nothing is in it; on `gs://` there are no empty folders."""
    if not is_remote(folder):
        with contextlib.suppress(OSError):
            folder.rmdir()


def move_tree(source: Path, target: Path) -> None:
    """Rename a folder. On `gs://` it is copied on the server and then removed; killed in between, both are there."""
    if is_remote(source):
        names = list(remote().files(source))
        remote().copy_all(source, target, names)
        remove_tree(source)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def copy(source: Path, target: Path) -> None:
    """Copy a file from anywhere to anywhere; atomically where `target` is on `gs://`."""
    if is_remote(target):
        target.write_bytes(source.read_bytes())
    else:
        shutil.copyfile(local_copy(source), target)


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def files(folder: Path) -> dict[str, Any]:
    """All files below a folder on `gs://`, by their names below it, in order, each with size and digest."""
    return remote().files(folder)


def local_copy(path: Path) -> Path:
    """A file or folder that has to be on this machine: `path` itself, or for `gs://` a copy of what is there now.

    Copies are kept in the user's cache folder. `UserError` if nothing is there.
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
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes here one copies, and the others find its copy
            if not copied.exists():
                room_for(sum(status.st_size for status in found.values()), home)
                with atomic_directory(home / version) as folder:
                    into = (path, folder / path.name) if status.is_directory else (path.parent, folder)
                    remote().download_all(*into, list(found))
                _remove_old(home, version)
    return copied


def _remove_old(home: Path, version: str) -> None:
    """Remove copies of what is there no more; not those of today, which another process may be reading."""
    for other in home.iterdir():
        if other.name not in (version, LOCK) and other.stat().st_mtime < time.time() - 86_400:
            remove_tree(other)


def _sync(path: Path) -> None:
    """On the disk, not only in the system's memory: a name must not outlive its content when the power fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def room_for(size: int, folder: Path) -> None:
    """Refuse what will not fit on the device of `folder`; `UserError` says how much is missing. `gs://` has room."""
    if is_remote(folder):
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(f"no space left on the device: {folder} has {free / 1e6:,.1f} MB, {size / 1e6:,.1f} are needed")


def remove_partials(directory: Path) -> None:
    """Remove what an interrupted process left half-written in `directory`; on `gs://` nothing is ever."""
    if is_remote(directory):
        return
    for leftover in directory.glob(".*.partial"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    if is_remote(path):
        path.write_text(text, encoding="utf-8")
        return
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; `UserError` if the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno} is not JSON ({error.msg}); remove the file to make it again"
        ) from None


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def explain(error: BaseException | None) -> UserError | None:
    """One line for a request to `gs://` that TensorStore gave up or was refused; None for any other error."""
    while error is not None and not ("gs://" in str(error) and _GIVEN_UP.search(str(error))):
        error = error.__cause__ or error.__context__
    return None if error is None else remote().explain(str(error))


def check_writable(path: Path) -> None:
    """Make and remove a tiny file in a folder; `UserError` says what is missing: a bucket, a role, a right."""
    if is_remote(path):
        remote().check_bucket(path)
    probe = path / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error}); choose another place") from None
