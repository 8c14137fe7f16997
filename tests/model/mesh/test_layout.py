"""The rules from logical dimensions to mesh axes."""

import pytest

from tpullm.model.mesh import RULES, mesh_axes, unstacked_axes


def test_no_two_dimensions_share_a_mesh_axis():
    with pytest.raises(AssertionError, match="twice"):
        RULES.spec("heads", "mlp")


def test_the_axes_that_split_some_dimensions():
    """In their order, whether a dimension is split by several, by one or by none."""
    spec = RULES.spec("batch", "time", None, "mlp")
    assert mesh_axes(spec, (0, 1)) == ("data", "fsdp", "expert", "sequence")
    assert mesh_axes(spec, range(2, 4)) == ("tensor",) and mesh_axes(spec, (2,)) == ()


def test_what_stacks_parameters_is_no_axis_of_one():
    assert unstacked_axes(("layers", "experts", "embed", "mlp")) == ("embed", "mlp")
    assert unstacked_axes(("layers", "embed", "experts")) == ("embed", "experts"), "a router's own dimension"
    assert unstacked_axes(("layers",)) == ()
