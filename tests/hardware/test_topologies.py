"""Names of slices and of hosts with GPUs, and what their compilers are told."""

import pytest

from tpullm.hardware.topologies import parse
from tpullm.system.errors import UserError


def test_a_name_says_generation_shape_and_slices():
    topology = parse("2 x v5p:4x4x8")
    assert (topology.generation, topology.shape, topology.slices, topology.chips) == ("v5p", (4, 4, 8), 2, 256)
    assert str(topology) == "2 x v5p:4x4x8" and topology.name == "v5p:4x4x8"
    assert str(parse("v5e:16x16")) == "v5e:16x16"


def test_rings_are_told_where_there_are_some():
    """MaxText's table: a dimension of 16 chips of a v5e or v6e is a ring; whole cubes of a v5p are rings each way."""
    assert parse("v5e:16x16").described()["wrap"] == (True, True, False)
    assert parse("v6e:8x16").described()["wrap"] == (False, True, False)
    assert "wrap" not in parse("v5e:4x4").described()
    assert parse("v5p:4x4x8").described()["wrap"] == (True, True, True)
    assert "wrap" not in parse("v5p:2x2x1").described()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", "is not NAME:SHAPE, such as v5e:16x16, 2 x v5p:4x4x8, h100:8 or h100:16x8"),
        ("v4:4x4", "v4 is not known, nearest"),
        ("mi300:8", "mi300 is not known.*; there are TPUs v5e, v6e, v5p and GPUs a100, h100, h200, b200, gb200, l4"),
        ("h10:8", "h10 is not known, nearest h100"),
        ("v5e:4x4x4", "has 2 dimensions, such as 4x4"),
        ("v5p:4x4", "has 3 dimensions, such as 4x4x4"),
        ("v5e:32x16", "512 chips a slice; v5e has at most 256"),
        ("v5e:0x4", "has 2 dimensions"),
        ("0 x v5e:4x4", "has 2 dimensions"),
        ("v5e:3x5", "no such slice of v5e; the nearest are 4x4 or 2x4"),
        ("v6e:16x8", "no such slice of v6e; the nearest are 8x16 or"),
        ("v5p:8x4x4", "no such slice of v5p; the nearest are 4x4x8 or"),
        ("v5p:3x3x3", "no such slice of v5p; the nearest are 2x4x4 or"),
    ],
)
def test_what_does_not_exist_is_told_in_one_line(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)
