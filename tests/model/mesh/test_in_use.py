"""The mesh of a model that is used: any number of devices, and any width."""

import pytest

from tpullm.model import mesh


@pytest.mark.parametrize(
    ("devices", "slices", "width", "data", "fsdp"),
    [(1, 1, 32, 1, 1), (8, 1, 32, 1, 8), (12, 1, 32, 3, 4), (3, 1, 32, 3, 1), (8, 2, 32, 2, 4), (16, 4, 2, 8, 2)],
)
def test_the_width_is_split_as_often_as_a_slice_allows(monkeypatch, devices, slices, width, data, fsdp):
    asked = {}
    monkeypatch.setattr(mesh.jax, "devices", lambda: list(range(devices)))
    monkeypatch.setattr(mesh, "_slices", lambda devices: slices)
    monkeypatch.setattr(mesh, "make_mesh", lambda shape, devices: asked.update(shape))
    mesh.mesh_in_use(width)
    assert asked == {"data": -1, "fsdp": fsdp} and data * fsdp == devices and data % slices == 0 and width % fsdp == 0
