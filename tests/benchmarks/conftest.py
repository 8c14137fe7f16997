"""The benchmark's modules lie beside its script and are imported as the script imports them."""

import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from sizes import SIZES, Size, shapes  # noqa: E402


@pytest.fixture
def tiny(monkeypatch):
    """The name of a size that is trained in no time."""
    monkeypatch.setitem(
        SIZES, "tiny", Size(shapes(2, 32, 2, 64, 16), batch_size=2, sequence_length=16, steps=1, rounds=1)
    )
    return "tiny"
