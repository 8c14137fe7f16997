"""The layers of a prompt that are read together."""

import pytest

from tpullm.engine.row_memory import alike_layers


@pytest.mark.parametrize(
    "kinds, size",
    [((0,), 1), ((0, 0), 1), ((0,) * 6, 1), ((0,) * 32, 4), ((0, 1) * 6, 2), ((0, 0, 0, 0, 1) * 4, 5), ((0, 1, 0), 3)],
)
def test_layers_are_read_in_parts_that_are_alike(kinds, size):
    assert alike_layers(kinds) == size
    parts = {kinds[first : first + size] for first in range(0, len(kinds), size)}
    assert len(parts) == 1 and len(kinds) / size <= 8
