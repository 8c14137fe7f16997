"""Zigzag order: causal attention costs all devices the same."""

import numpy as np
import pytest

from tpullm.model.rows import zigzag_order


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_every_token_is_there_once_and_all_devices_attend_to_as_many(devices):
    """A token at index i attends to i + 1 tokens. A device has two runs of consecutive tokens, in ascending order."""
    length = 24 * devices
    order = zigzag_order(length, devices)
    assert sorted(order) == list(range(length))
    own = order.reshape(devices, -1)
    assert len(set((own + 1).sum(axis=1))) == 1
    assert (np.diff(own, axis=1) > 0).all()
    if devices > 1:
        assert ((np.diff(own, axis=1) != 1).sum(axis=1) <= 1).all()
        assert (own[:, 0] < length // 2).all() and own[0, 0] == 0 and own[0, -1] == length - 1
