"""Paths and folders of both kinds: what the user means by a text; move, remove, hash and measure what is there.

A path is a `pathlib.Path`, or on `gs://` a `gcs.BucketPath` with the same methods as far as tpullm uses them: `/`,
name, parent, exists, is_dir, is_file, iterdir, glob, stat, open, read_text, read_bytes, write_text, write_bytes, unlink
and mkdir. For everything else there is a function in this package, which takes either kind.

On `gs://` a stage counts as finished if its `manifest.json` exists, so that file is removed first.
"""

import base64
import contextlib
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError

LAST = "manifest.json"
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_GIVEN_UP = re.compile("retry attempts failed|PERMISSION_DENIED|UNAUTHENTICATED|CURL error|UNAVAILABLE")


def path(text: str | Path) -> Path:
    """The path that the user means: an absolute local path, or a path on `gs://`.

    Raises:
        UserError: another scheme, no bucket, or Google's client is not installed.
    """
    if is_remote(text):
        if not BUCKET.fullmatch(str(text).removeprefix("gs://").split("/")[0]):
            raise UserError(f"{text}: names no bucket; write gs://BUCKET/FOLDER, the bucket in small letters")
        return remote().path(str(text))
    if "://" in str(text):
        raise UserError(f"{text}: only local paths and gs:// are supported; copy it to one of them")
    return Path(text).expanduser().absolute()


def is_remote(path: str | Path) -> bool:
    """Whether the path is on `gs://`."""
    return str(path).startswith("gs://")


def remote():
    """The module `gcs`; `UserError` if Google's client is not installed."""
    try:
        from tpullm.system.storage import gcs
    except ModuleNotFoundError as error:
        raise UserError(f"gs:// needs {error.name}, which is not installed; pip install 'tpullm[gcp]'") from None
    return gcs


def explain(error: BaseException | None) -> UserError | None:
    """One line for a request to `gs://` that failed in TensorStore; None for any other error."""
    while error is not None and not ("gs://" in str(error) and _GIVEN_UP.search(str(error))):
        error = error.__cause__ or error.__context__
    return None if error is None else remote().explain(str(error))


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal; `UserError` if the disk cannot read them, or a link to `/proc`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again, or remove it") from None


def hash_code(*modules: str) -> str:
    """SHA-256 of the files in the folders of some modules (their `__file__`), in hexadecimal."""
    beside = [file for module in modules for file in Path(module).parent.iterdir()]
    files = [file for file in beside if file.suffix in (".py", ".yaml") and file.is_file()]
    return hash_json([hash_file(file) for file in sorted(files)])


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

    def md5(name: str) -> tuple[str, str] | None:
        with contextlib.suppress(FileNotFoundError), (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
            return name, base64.b64encode(digest).decode()
        return None

    with ThreadPoolExecutor() as threads:
        return dict(filter(None, threads.map(md5, names)))


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, if it exists."""
    if is_remote(path):
        names = list(remote().files(path))
        remote().remove_all(path, [name for name in names if name == LAST])
        remote().remove_all(path, [name for name in names if name != LAST])
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_tree(source: Path, target: Path) -> None:
    """Rename a folder. On `gs://` it is copied on the server and then removed; if killed in between, both exist."""
    if is_remote(source):
        remote().copy_all(source, target, list(remote().files(source)))
        remove_tree(source)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def names(folder: Path) -> set[str]:
    """Names in a folder, without files that are being written; empty if there is no folder."""
    with contextlib.suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}
    return set()


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files below a folder, by name relative to the folder, sorted by name."""
    if is_remote(folder):
        return {name: status.st_size for name, status in remote().files(folder).items()}
    found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


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
