"""The benchmark's modules are imported as its scripts import them: `benchmarks` is on pytest's path."""

import pytest
from sizes import SIZES, Size, shapes


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(
        SIZES, "tiny", Size(shapes(2, 32, 2, 64, 16), batch_size=2, sequence_length=16, steps=1, rounds=1)
    )
    return "tiny"
