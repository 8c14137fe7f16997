"""Sharded = single device: log-probabilities and objectives, and their gradients, are the same on any mesh."""

import numpy as np
import pytest

from tests.eight_devices import printed


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param(["one device", "data 2, fsdp 2, tensor 2"], marks=pytest.mark.ci),
        pytest.param([], marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_objectives_on_a_mesh_are_those_of_one_device(meshes):
    """Losses, what is logged and gradients of hidden states and table, float32 sums in another order."""
    found = printed("tests.training.objectives.sharded_objectives", *meshes)
    expected = found.pop("one device")
    assert len(found) >= len(meshes or [0] * 5) - 1
    for name, numbers in found.items():
        assert numbers.keys() == expected.keys()
        for what, one in numbers.items():
            other = np.array(expected[what])
            np.testing.assert_allclose(
                one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max(), err_msg=f"{name}: {what}"
            )
