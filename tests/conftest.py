"""What several tests share: real text where it is there, and small models."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_text() -> Path:
    """The folder of real text for tests (`TPULLM_TEST_DATA`, or `../shared/data`); the test is skipped without it."""
    folder = Path(os.environ.get("TPULLM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real text in {folder}")
    return folder
