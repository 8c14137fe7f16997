"""The libraries of the extra `documents`: PDF, workbooks and RTF. All other formats need none."""

import importlib
from importlib import metadata
from typing import Any

from tpullm.corpus.files import opened

INSTALL = "pip install 'tpullm[documents]'"
LIBRARIES = {"pdf": "pypdfium2", "sheet": "python-calamine", "rtf": "striprtf"}  # by the kind of file


def needed(module: str) -> Any:
    """A module of the extra; `Unreadable` says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise opened.Unreadable(f"needs a package that is not installed; run: {INSTALL}") from None


def versions() -> dict[str, str]:
    """The version of each library; "" of one that is not installed."""
    found = {}
    for name in LIBRARIES.values():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found
