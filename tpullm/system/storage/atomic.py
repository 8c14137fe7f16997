"""Atomic writes: a file or folder is there as a whole or not at all.

A local file or folder is written under a temporary name beside its target, flushed to disk and renamed. On `gs://` a
file is one request. A folder is sent file by file, `manifest.json` last: a stage counts as finished if that exists.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.storage.paths import LAST, is_remote, remote, remove_tree


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary local path; it becomes `path` when the block ends, and is removed if the block raises."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            yield Path(folder) / path.name
            remote().upload(Path(folder) / path.name, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with naming(path):
            yield temporary
            _sync_to_disk(temporary)
            os.replace(temporary, path)
            _sync_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Have the error of a full disk, or what it was raised from, name the file: that of a write or a flush does not."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None:
            if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT) and found.filename is None:
                found.filename = str(path)
            found = found.__cause__ or found.__context__
        raise


def append(file: FileIO, data: bytes) -> None:
    """Write all of `data` at the end of an unbuffered file; on a full disk a part may be written before the error."""
    left = memoryview(data)
    with naming(file.name):
        while left:
            left = left[file.write(left) :]


@contextlib.contextmanager
def atomic_directory(path: Path, replaces: bool = True) -> Iterator[Path]:
    """Yield an empty temporary local folder; it becomes `path` when the block ends, and is removed if the block raises.

    Args:
        replaces: True: replace `path` with whatever it contains. False: replace only an empty folder.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            yield Path(folder)
            names = [str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()]
            if not replaces and path.exists():
                raise UserError(f"{path}: is not an empty folder any more; choose another one")
            remove_tree(path)
            remote().upload_all(Path(folder), path, sorted(set(names) - {LAST}))
            remote().upload_all(Path(folder), path, [name for name in names if name == LAST])
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            for written in [*temporary.rglob("*"), temporary]:
                _sync_to_disk(written)
        if replaces:
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(temporary, path)  # over an empty folder too
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise UserError(f"{path}: is not an empty folder any more; choose another one") from None
        _sync_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_to_disk(path: Path) -> None:
    """Flush to disk: after a power failure there must be no name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrays(path: Path, *arrays: Any, **named: Any) -> None:
    """Write arrays of numpy as `.npz`, atomically."""
    import numpy as np  # a verb that only asks for a status does without

    with atomic_file(path) as temporary, temporary.open("wb") as opened:
        np.savez(opened, *arrays, **named)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; `UserError` if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno} is not JSON ({error.msg}); remove it to make it again") from None


def read_tables(file: Path, **kinds: Any) -> list[Any]:
    """The tables of a YAML file beside a module, by their keys: each as its kind, a dict or a list of dataclasses.

    Unknown fields are refused.
    """
    import yaml
    from pydantic import TypeAdapter

    found = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # 6 times faster
    return [TypeAdapter(kind, config={"extra": "forbid"}).validate_python(found[key]) for key, kind in kinds.items()]


def remove_partials(directory: Path) -> None:
    """Remove half-written files of interrupted processes from `directory`; `gs://` has none."""
    if is_remote(directory):
        return
    for leftover in directory.glob(".*.partial"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def check_writable(path: Path) -> None:
    """Write and remove an empty file in a folder; `UserError` if that fails, for want of a bucket or a role, say."""
    if is_remote(path):
        remote().check_bucket(path)
    probe = path / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error}); choose another place") from None
