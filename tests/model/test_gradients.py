"""The type in which the gradients of devices are reduced (`model.gradients`)."""

from tests.eight_devices import printed


def test_sums_of_devices_are_exact_where_float32_is_asked():
    """A sum in bfloat16 is rounded by up to 2^-9 at each of 3 steps, and a CPU sums some matmuls in that type too: 0.03
    is 15 of those roundings. float32 is at most a hundred roundings of 6e-8 away from the sum in float64."""
    results = printed("tests.model.sharded_gradients")
    assert len(results) == 4
    for name, errors in results.items():
        assert 1e-3 < errors["compute"] < 0.03, name
        assert errors["float32"] < 6e-6, name
