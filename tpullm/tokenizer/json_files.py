"""The JSON files in a folder of Hugging Face: each holds one object."""

import json
from pathlib import Path

from tpullm.errors import UserError


def read_json(path: Path) -> dict:
    """The object in a JSON file; `UserError` if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; give a folder in the format of Hugging Face") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; fetch it again")
    return found


def read_optional(path: Path) -> dict:
    """The object in a JSON file, or an empty one if there is no such file; `UserError` if the file is broken."""
    return read_json(path) if path.is_file() else {}
