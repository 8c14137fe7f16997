"""Where this user's programs keep what can be made again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of that name among those where this user's programs keep what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "tpullm" / name
