"""Collectives in steps along the dimensions of a torus, and the type in which gradients are reduced."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tests.eight_devices import printed
from tpullm.hardware.topologies import parse
from tpullm.model.collectives import line_groups, reduce_scatter_steps, torus_factors
from tpullm.planning.program import absent_mesh


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


@pytest.mark.parametrize(
    ("topology", "lengths"),
    [
        ("v5p:4x4x8", [4, 4, 8]),
        ("tpu7x:4x4x4", [8, 4, 4]),  # the chips of a line, and both devices of each
        ("tpu7x:4x8x8", [8, 8, 8]),
        ("tpu7x:1x1x1", [None]),
        ("h100:4x8", [None]),
    ],
)
def test_the_steps_over_a_whole_slice_are_the_lines_of_its_torus(topology, lengths):
    found, mesh = [], absent_mesh({"fsdp": -1}, parse(topology))
    with jax.sharding.use_abstract_mesh(mesh):
        of = jax.shard_map(lambda x: found.extend(reduce_scatter_steps("fsdp")) or x, out_specs=P("fsdp"))
        jax.eval_shape(of, jax.ShapeDtypeStruct((512,), jnp.float32, sharding=jax.NamedSharding(mesh, P("fsdp"))))
    assert [groups and len(groups[0]) for groups in found] == lengths


@pytest.mark.ci
def test_sums_of_devices_are_exact_where_float32_is_asked():
    """A sum in bfloat16 is rounded by up to 2^-9 at each of 3 steps, and a CPU sums some matmuls in that type too: 0.03
    is 15 of those roundings. float32 is at most a hundred roundings of 6e-8 away from the sum in float64."""
    results = printed("tests.model.sharded_gradients")
    assert len(results) == 4
    for name, errors in results.items():
        assert 1e-3 < errors["compute"] < 0.03, name
        assert errors["float32"] < 6e-6, name
