"""Collectives in steps along the dimensions of a torus, and the type in which gradients are reduced."""

import math

import pytest

from tests.eight_devices import printed
from tpullm.model.collectives import line_groups, torus_factors


@pytest.mark.parametrize(
    ("lines", "first"), [([16, 16], 1), ([2, 4], 1), ([8, 8, 8], 1), ([8, 8, 8], 2), ([4, 4, 8], 2), ([2, 3, 5], 2)]
)
def test_scatters_along_the_lines_of_a_grid_leave_each_device_its_own_part(lines, first):
    """Of what it has a device keeps the part that is its place in its group; at the end, that of its number."""
    devices = math.prod(lines)
    parts = {device: range(devices) for device in range(devices)}
    assert len(line_groups(lines, first)) == len(lines) - first + 1
    for groups in line_groups(lines, first):
        assert sorted(device for group in groups for device in group) == list(range(devices))
        for group in groups:
            assert len({parts[device] for device in group}) == 1  # they sum the same
            size = len(parts[group[0]]) // len(group)
            parts |= {device: parts[device][n * size : (n + 1) * size] for n, device in enumerate(group)}
    assert all(part == range(device, device + 1) for device, part in parts.items())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("size", [2**power for power in range(11)])
def test_the_factors_of_a_slice_are_as_even_as_can_be(size, dimensions):
    """Of a power of two: ascending, none more than twice another, and 1 only of one device."""
    found = torus_factors(size, dimensions)
    assert math.prod(found) == size and found == sorted(found)
    assert found == [1] if size == 1 else 1 not in found
    assert len(found) == min(dimensions, max(size.bit_length() - 1, 1)) and found[-1] <= 2 * found[0]


@pytest.mark.ci
def test_sums_of_devices_are_exact_where_float32_is_asked():
    """A sum in bfloat16 is rounded by up to 2^-9 at each of 3 steps, and a CPU sums some matmuls in that type too: 0.03
    is 15 of those roundings. float32 is at most a hundred roundings of 6e-8 away from the sum in float64."""
    results = printed("tests.model.sharded_gradients")
    assert len(results) == 4
    for name, errors in results.items():
        assert 1e-3 < errors["compute"] < 0.03, name
        assert errors["float32"] < 6e-6, name
