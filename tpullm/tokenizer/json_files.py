"""The JSON files in a folder of Hugging Face: each holds one object. They are foreign: what they cost is bounded."""

import json
from pathlib import Path

from tpullm.system import storage
from tpullm.system.errors import UserError

# The largest known are a tokenizer.json of 33 MB with 2 M values (Gemma 3) and an index of 12 MB with 0.3 M.
MOST_BYTES = 1 << 26
# A value of three bytes becomes an object of a hundred, so the size of a file alone does not bound the memory.
MOST_VALUES = 4_000_000
MOST_TEXT_BYTES = 1 << 20  # of a chat template


def read_json(path: Path) -> dict:
    """The object in a JSON file; `UserError` if there is none, or it is too large, or its link leads elsewhere."""
    try:
        data = storage.read_bounded(storage.inside(path.parent, path.name, path.parent), MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; give a folder in the format of Hugging Face") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); fetch it again") from None
    if sum(map(data.count, (b"[", b"{", b","))) > MOST_VALUES:
        raise UserError(f"{path}: has more than {MOST_VALUES:,} values; no known model has so many")
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; fetch it again")
    return found


def read_optional(path: Path) -> dict:
    """The object in a JSON file, or an empty one if there is no such file; `UserError` if the file is broken."""
    return read_json(path) if path.exists() else {}


def read_text(path: Path) -> str:
    """The text of a small file, such as a chat template; `UserError` if it is not UTF-8 or too large."""
    try:
        return storage.read_bounded(storage.inside(path.parent, path.name, path.parent), MOST_TEXT_BYTES).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; convert the file") from None
