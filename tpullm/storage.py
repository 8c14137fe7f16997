"""Files: every write is atomic (a temporary sibling, then a rename), every hash is SHA-256."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.errors import UserError


def local(path: str | Path) -> Path:
    """`path` as an absolute path of this machine; `UserError` for `gs://` and the like, which are not supported yet."""
    if "://" in str(path):
        raise UserError(f"{path}: only local folders are supported yet; use a local folder and copy it afterwards")
    return Path(path).absolute()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends, and is removed if it fails."""
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
    """Yield an empty temporary folder beside `path`; it replaces `path` when the block ends, is removed if it fails.

    Args:
        replaces: whatever is in `path`; else an empty folder alone.
    """
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


def _sync(path: Path) -> None:
    """On the disk, not only in the system's memory: a name must not outlive its content when the power fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def room_for(size: int, folder: Path) -> None:
    """Refuse what will not fit on the device of `folder`; `UserError` says how much is missing."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(f"no space left on the device: {folder} has {free / 1e6:,.1f} MB, {size / 1e6:,.1f} are needed")


def remove_partials(directory: Path) -> None:
    """Remove what an interrupted process left half-written in `directory`."""
    for leftover in directory.glob(".*.partial"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; nothing happens where there is none."""
    shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
