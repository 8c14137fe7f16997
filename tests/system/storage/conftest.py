"""A folder of both kinds, for tests of what is true of both."""

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path) -> Path:
    """A local folder, then one on `gs://`."""
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket") / "folder"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
