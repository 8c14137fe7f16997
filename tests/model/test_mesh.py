"""Sizes of a mesh, the rules from logical dimensions to its axes, and what is said of what does not fit."""

import itertools
from types import SimpleNamespace

import pytest

from tests.model.test_fit import refused
from tpullm.model import mesh
from tpullm.model.collectives import line_groups
from tpullm.model.mesh import RULES, make_mesh, planned_mesh


@pytest.mark.parametrize(
    ("shape", "devices", "message"),
    [
        ({"fsdp": 3, "tensor": 5}, 1, "{fsdp: 3, tensor: 5} needs 15 and does not fit 1 device(s); use {fsdp: 1, t"),
        ({"fsdp": 16}, 8, "mesh: {fsdp: 16} needs 16 and does not fit 8 device(s); use {fsdp: 8}"),
        ({"tensor": 2}, 8, "needs 2 and does not fit 8 device(s); use {fsdp: -1, tensor: 2} or {tensor: 8}"),
        ({"data": 2, "fsdp": 3}, 8, "use {data: 2, fsdp: 4} or {data: 4, fsdp: 2}"),
        ({"fsdp": -1, "tensor": 3}, 8, "needs a multiple of 3 and does not fit 8 device(s); use {fsdp: -1, tensor: 4}"),
        ({}, 8, "mesh: {} needs 1 and does not fit 8 device(s); use {fsdp: -1}"),
        ({"fsdp": -2, "tensor": -4}, 8, "mesh.fsdp: -2 is not a number of devices; use 1 or more, or -1"),
        ({"fsdp": 2.0}, 2, "mesh.fsdp: 2.0 is not a number of devices"),
        ({"fsdp": True}, 1, "mesh.fsdp: True is not a number of devices"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_one_clear_line(shape, devices, message):
    assert message in refused(lambda: planned_mesh(shape, devices))


def test_a_mesh_is_of_the_devices_of_all_hosts():
    devices = [SimpleNamespace(process_index=n // 4) for n in range(8)]
    message = refused(lambda: make_mesh({"fsdp": 4}, devices))
    assert message == "mesh: {fsdp: 4} needs 4 and does not fit 8 device(s) of 2 hosts together; use {fsdp: 8}"


def test_slices_differ_along_data_alone():
    devices = [
        SimpleNamespace(
            platform="tpu", device_kind="TPU", slice_index=n // 4, id=n, coords=(n % 2, n // 2 % 2, 0), core_on_chip=0
        )
        for n in range(8)
    ]
    found = mesh.arrange_devices((4, 2, 1), devices)
    assert [[one.slice_index for one in part.flat] for part in found] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert found.shape == (4, 2, 1) and len({one.id for one in found.flat}) == 8
    assert refused(lambda: mesh.arrange_devices((1, 8, 1), devices)).startswith("mesh.data: 1 can't be shared by 2")


def test_an_axis_over_a_whole_slice_has_both_devices_of_a_chip_in_one_line_of_the_first_dimension():
    places = list(itertools.product(range(4), range(4), range(4), range(2)))
    devices = [
        SimpleNamespace(platform="tpu", device_kind="TPU7x", slice_index=0, coords=(x, y, z), core_on_chip=core, id=n)
        for n, (z, y, x, core) in enumerate(places)
    ]
    found = mesh.arrange_devices((1, 128, 1, 1, 1), devices)
    assert found.shape == (1, 128, 1, 1, 1) and len({one.id for one in found.flat}) == 128
    for lines, same in zip(line_groups([8, 4, 4]), ((1, 2), (0, 2), (0, 1)), strict=True):
        for line in lines:
            of = [found.flat[n] for n in line]
            assert all(len({one.coords[n] for one in of}) == 1 for n in same)
            assert len({(one.coords, one.core_on_chip) for one in of}) == len(line)
    split = mesh.arrange_devices((1, 64, 1, 1, 2), devices)  # the nearest devices are those of a chip
    assert all(a.coords == b.coords for a, b in split.reshape(64, 2))


@pytest.mark.parametrize(
    ("devices", "slices", "width", "data", "fsdp"),
    [(1, 1, 32, 1, 1), (8, 1, 32, 1, 8), (12, 1, 32, 3, 4), (3, 1, 32, 3, 1), (8, 2, 32, 2, 4), (16, 4, 2, 8, 2)],
)
def test_the_width_is_split_as_often_as_a_slice_allows(monkeypatch, devices, slices, width, data, fsdp):
    asked = {}
    monkeypatch.setattr(mesh.jax, "devices", lambda: list(range(devices)))
    monkeypatch.setattr(mesh, "_slice_count", lambda devices: slices)
    monkeypatch.setattr(mesh, "make_mesh", lambda shape, devices: asked.update(shape))
    mesh.mesh_in_use(width)
    assert asked == {"data": -1, "fsdp": fsdp} and data * fsdp == devices and data % slices == 0 and width % fsdp == 0


def test_no_two_dimensions_share_a_mesh_axis():
    with pytest.raises(AssertionError, match="twice"):
        RULES.spec("heads", "mlp")
