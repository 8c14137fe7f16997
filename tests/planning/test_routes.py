"""What goes over the links, counted by hand: bytes, seconds, and what is waited for."""

import dataclasses

import pytest

from tests.planning.by_hand import ATTENTION, DENSE, EXPERTS, MLP, TABLE, setting
from tpullm.hardware.topologies import parse
from tpullm.planning.routes import torus_route, traffic, waits_for_parameters
from tpullm.planning.setting import MAXTEXT, OURS

TIED = dataclasses.replace(DENSE, tied_embeddings=True)
UNTIED = dataclasses.replace(DENSE, tied_embeddings=False)
NUMBERS = 3 * (ATTENTION + MLP) + TABLE  # of all parameters that are gathered


def sent(of) -> dict[tuple[str, str], tuple[float, bool]]:
    return {(one.axis, one.what): (one.received, one.waits) for one in traffic(of)}


def test_parameters_are_gathered_twice_and_their_gradients_scattered_once():
    """In 2 bytes each, 15 of 16 parts; the output's table only in the forward pass."""
    found = sent(setting(TIED, fsdp=16))
    assert found == {
        ("fsdp", "all-gathers of parameters"): (2 * 2 * NUMBERS * 15 / 16, False),
        ("fsdp", "sums of gradients"): (2 * NUMBERS * 15 / 16, False),
    }
    untied = sent(setting(UNTIED, fsdp=16))
    assert untied["fsdp", "sums of gradients"][0] == 2 * (NUMBERS + TABLE / 2) * 15 / 16
    twice = sent(setting(TIED, fsdp=16, accumulation=2, gradient=4))
    assert twice["fsdp", "all-gathers of parameters"][0] == 2 * found["fsdp", "all-gathers of parameters"][0]
    assert twice["fsdp", "sums of gradients"][0] == 4 * found["fsdp", "sums of gradients"][0]
    everywhere = sent(dataclasses.replace(setting(TIED, fsdp=16), traits=MAXTEXT))
    assert everywhere["fsdp", "sums of gradients"][0] == 2 * found["fsdp", "sums of gradients"][0]


@pytest.mark.parametrize(
    ("topology", "traits", "links", "hops", "scatter_links"),
    [
        ("v6e:4x4", OURS, 1, 8, 1),  # two lines, one after the other
        ("v6e:4x4", MAXTEXT, 2, 8, 2),  # both at once
        ("v6e:16x16", OURS, 2, 32, 2),  # rings carry both ways
        ("v6e:16x16", MAXTEXT, 4, 32, 4),
        ("v6e:8x16", OURS, 2, 24, 2),  # a line and a ring
        ("v5p:4x4x4", OURS, 2, 12, 4),  # a scatter goes over two dimensions at once
        ("v5p:2x2x1", OURS, 1, 4, 1),
        ("tpu7x:4x4x4", OURS, 2, 12, 4),  # both devices of a chip are in one line
        ("tpu7x:4x4x4", MAXTEXT, 6, 12, 6),
    ],
)
def test_seconds_are_bytes_over_links_and_a_latency_for_each_hop(topology, traits, links, hops, scatter_links):
    of = setting(TIED, topology, fsdp=parse(topology).devices, rows=512, traits=traits)
    gathers, sums = traffic(of)
    assert gathers.seconds == pytest.approx(gathers.received / (links * 0.5e9) + 3 * 4 * hops * 1e-6)
    assert sums.seconds == pytest.approx(sums.received / (scatter_links * 0.5e9) + 3 * 2 * hops * 1e-6)


@pytest.mark.parametrize(
    ("axes", "axis", "links", "dimensions"),
    [
        ({"fsdp": 128}, "fsdp", 6, 3),  # three rings, and what a chip receives is for both devices
        ({"fsdp": 64, "tensor": 2}, "fsdp", 3, 3),  # what each device receives is its own
        ({"fsdp": 64, "tensor": 2}, "tensor", 6, 1),  # between the devices of a chip, six times a link
        ({"fsdp": 16, "tensor": 8}, "tensor", 2, 1),  # a ring of chips, with both devices
        ({"fsdp": 32, "tensor": 4}, "tensor", 1, 1),  # a ring of chips, with one device of each
    ],
)
def test_the_devices_of_a_chip_share_its_links(axes, axis, links, dimensions):
    found = torus_route(parse("tpu7x:4x4x4"), setting(DENSE, "tpu7x:4x4x4", **axes).sizes, axis, False)
    assert (found.links, found.dimensions) == (links, dimensions)


def test_gradients_are_summed_over_copies_of_the_parameters_too():
    """An all-reduce, twice the bytes, and it is waited for."""
    found = sent(setting(TIED, data=4, fsdp=4))
    assert found["data", "sums of gradients"] == (2 * NUMBERS / 4 * 2 * 3 / 4, True)
    found = sent(setting(TIED, fsdp=8, sequence=2))
    assert found["sequence", "sums of gradients"] == (2 * NUMBERS / 8 * 2 * 1 / 2, True)
    alone = sent(setting(TIED, "2 x v6e:4x4", data=2, fsdp=16))
    assert ("data", "sums of gradients") not in alone
    several = sent(setting(TIED, "2 x v6e:4x4", data=8, fsdp=4))
    assert several["data", "sums of gradients"] == (2 * NUMBERS / 4 * 2 * 3 / 4, True)  # four copies


def test_activations_along_tensor_and_keys_and_values_along_sequence():
    """Two all-reduces of `[tokens, D]` forward and two backward, and one of the embeddings and its gradient."""
    of = setting(TIED, fsdp=8, tensor=2)
    assert of.tokens == 512
    key, once = ("tensor", "all-reduces of activations"), 512 * 512 * 2 * 2 / 2
    assert sent(of)[key] == ((3 * 4 + 2) * once, True)
    assert sent(dataclasses.replace(of, recompute=("out",)))[key] == ((3 * 5 + 2) * once, True)
    assert sent(dataclasses.replace(of, accumulation=2))[key] == sent(of)[key]
    assert sent(dataclasses.replace(of, traits=MAXTEXT))[key] == ((3 * 4 + 2) * once, False)
    (one,) = (one for one in traffic(of) if one.axis == "tensor")
    assert one.seconds == pytest.approx(one.received / 0.5e9 + 2 * 3 * 4 * 2 * 1e-6)
    # The parameters are shared too.
    assert sent(of)["fsdp", "sums of gradients"][0] == 2 * NUMBERS / 2 * 7 / 8
    of = setting(TIED, fsdp=8, sequence=2)
    row = 512 * 2 * 4 * 64  # keys and values of the 512 tokens of two devices
    key = ("sequence", "keys and values")
    assert sent(of)[key] == (3 * 2 * row * 2 / 2, True)
    again = dataclasses.replace(of, recompute=("scores",))
    assert sent(again)[key] == (3 * 3 * row * 2 / 2, True)
    shared = setting(TIED, fsdp=4, sequence=2, tensor=2)
    assert sent(shared)[key][0] == 3 * 2 * (1024 * 2 * 4 * 64 / 2) * 2 / 2
    one = next(one for one in traffic(of) if one.what == "keys and values")
    assert one.seconds == pytest.approx(one.received / 0.5e9 + 3 * 3 * 2 * 1e-6)


def test_slices_sum_their_gradients_over_the_data_center_network():
    """Between two slices, an all-reduce of the parameters of one device in 2 bytes: MaxText sends 4."""
    of = setting(TIED, "2 x v6e:4x4", data=2, fsdp=16)
    one = next(one for one in traffic(of) if one.axis == "slices")
    assert (one.received, one.waits) == (2 * NUMBERS / 16 * 2 / 2, True)
    assert one.seconds == pytest.approx(one.received / (1e8 * 0.4))
    untied = dataclasses.replace(of, model=UNTIED, accumulation=2)
    assert sent(untied)["slices", "sums of gradients"][0] == 2 * 2 * (NUMBERS + TABLE) / 16 * 2 / 2
    assert sent(dataclasses.replace(of, traits=MAXTEXT))["slices", "sums of gradients"][0] == 2 * one.received
    three = setting(TIED, "3 x v6e:4x4", data=3, fsdp=16, rows=48)
    assert sent(three)["slices", "sums of gradients"][0] == pytest.approx(2 * NUMBERS / 16 * 2 * 2 / 3)


def test_tokens_travel_five_times_and_padded_buffers_are_sent_whole():
    of = setting(dataclasses.replace(EXPERTS, tied_embeddings=True), fsdp=4, expert=4)
    assert of.tokens == 256 and of.fullness == 1.25
    key, rows = ("expert", "dispatch and combine"), 256 * 2
    assert sent(of)[key] == (3 * 5 * rows * 512 * 2 * 3 / 4, False)
    padded = dataclasses.replace(of, device=dataclasses.replace(of.device, ragged_exchange=False))
    assert padded.fullness == 1.5 and sent(padded)[key] == (1.5 * sent(of)[key][0], True)
    theirs = dataclasses.replace(of, traits=MAXTEXT)
    assert sent(theirs)[key] == (3 * 6 * rows * 512 * 2 * 3 / 4, True)
    assert sent(dataclasses.replace(theirs, recompute=("up",)))[key][0] == 3 * 8 * rows * 512 * 2 * 3 / 4
    one = next(one for one in traffic(of) if one.what == "dispatch and combine")
    assert one.seconds == pytest.approx(one.received / (2 * 0.5e9) + 5 * 3 * 4 * 1e-6)
    # Two of eight experts are on a device, and a router everywhere. What is no expert's is summed along `expert`.
    assert of.mlp_parameters == 2 * MLP + 512 * 8
    assert sent(of)["expert", "sums of gradients"] == (2 * (3 * ATTENTION + TABLE) / 4 * 2 * 3 / 4, True)
    shared = dataclasses.replace(of, model=dataclasses.replace(of.model, shared_experts=1))
    assert shared.mlp_parameters == 3 * MLP + 512 * 8
    assert setting(EXPERTS, fsdp=16).fullness == 1 and setting(DENSE, fsdp=4, expert=4).fullness == 1


def test_what_stops_a_chip():
    """Without cores for collectives its scatters; with them what spans two dimensions and not the whole mesh."""
    assert waits_for_parameters(setting(fsdp=16)) == (False, False)
    assert waits_for_parameters(setting(fsdp=16, chip={"offloads_collectives": False})) == (False, True)
    assert waits_for_parameters(setting(fsdp=8, tensor=2)) == (True, True)
    assert waits_for_parameters(setting(data=4, fsdp=4)) == (False, False)
    assert waits_for_parameters(setting(fsdp=8, tensor=2, traits=MAXTEXT)) == (False, False)
    found = sent(setting(TIED, fsdp=16, chip={"offloads_collectives": False}))
    assert [waits for _, waits in found.values()] == [False, True]


@pytest.mark.parametrize(
    ("topology", "sizes", "axis", "route"),
    [
        ("v6e:4x8", (1, 32, 1, 1, 1), "tensor", (1, 1, 1)),  # a device by itself
        ("v6e:4x8", (1, 32, 1, 1, 1), "fsdp", (2, 12, 2)),
        ("v6e:4x8", (1, 4, 1, 1, 8), "tensor", (1, 8, 1)),  # the dimension that is as long
        ("v6e:4x8", (1, 4, 1, 1, 8), "fsdp", (1, 4, 1)),  # and then the other
        ("v6e:4x8", (1, 16, 1, 1, 2), "tensor", (1, 2, 1)),  # a part of the longest
        ("v6e:4x8", (1, 16, 1, 1, 2), "fsdp", (2, 8, 2)),  # all that is left
        ("v6e:16x16", (1, 16, 1, 1, 16), "fsdp", (2, 16, 1)),  # a ring
        ("v6e:16x16", (1, 32, 1, 1, 8), "fsdp", (3, 18, 2)),  # a ring and a part of one, which is a line
        ("v5p:4x4x4", (1, 16, 1, 1, 4), "fsdp", (4, 8, 2)),
        ("v5p:4x4x8", (1, 32, 1, 1, 4), "fsdp", (4, 12, 2)),
        ("2 x v6e:4x4", (8, 4, 1, 1, 1), "data", (1, 4, 1)),
        ("v6e:2x4", (8, 1, 1, 1, 1), "data", (2, 6, 2)),
        ("v5p:2x4x4", (1, 8, 1, 1, 4), "fsdp", (2, 6, 2)),  # whole dimensions before parts
    ],
)
def test_axes_take_dimensions_of_the_torus(topology, sizes, axis, route):
    assert torus_route(parse(topology), sizes, axis, False) == route
