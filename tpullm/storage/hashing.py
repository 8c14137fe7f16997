"""SHA-256 of files and values."""

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
