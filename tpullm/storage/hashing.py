"""SHA-256 of files and values; MD5 of many files, against flipped bits."""

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tpullm.storage.paths import is_remote, remote


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
