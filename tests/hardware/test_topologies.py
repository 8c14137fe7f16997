"""Names of slices and of hosts with GPUs, and what their compilers are told."""

import re

import pytest

from tpullm.hardware.chips import CHIPS
from tpullm.hardware.topologies import parse
from tpullm.system.errors import UserError


def test_a_name_says_generation_shape_and_slices_and_the_compiler_is_told_of_rings():
    topology = parse("2 x v5p:4x4x8")
    assert (topology.generation, topology.shape, topology.slices, topology.chips) == ("v5p", (4, 4, 8), 2, 256)
    assert str(topology) == "2 x v5p:4x4x8" and topology.name == "v5p:4x4x8"
    assert str(parse("v5e:16x16")) == "v5e:16x16"
    # MaxText's table: a dimension of 16 chips of a v5e or v6e is a ring; whole cubes of a v5p are rings each way.
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
        (
            "mi300:8",
            "is not known.*; there are TPUs v5e, v6e, v5p, tpu7x and GPUs a100, h100, h200, b200, gb200, l4",
        ),
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
        ("tpu7:2x2x1", "tpu7 is not known, nearest tpu7x"),
        ("tpu7x:2x2", "a slice of tpu7x has 3 dimensions, such as 4x4x4"),
        ("tpu7x:2x4x2", "no such slice of tpu7x; the nearest are 2x2x4 or"),
        ("tpu7x:16x24x28", "10752 chips a slice; tpu7x has at most 9216"),
        ("h100:3", r"a host has 1, 2, 4, 8 GPUs of h100, not 3$"),
        ("h100:16", r"a host has 1, 2, 4, 8 GPUs of h100, not 16$"),
        ("h100:4x4", r"not 4; several hosts have 8 each"),
        ("h100:2x2x8", r"is not GPUS or HOSTSxGPUS, such as h100:8 or h100:2x8"),
        ("2 x h100:8", r"is not GPUS or HOSTSxGPUS"),
        ("h100:0x8", r"is not GPUS or HOSTSxGPUS"),
        ("h100:0", r"a host has 1, 2, 4, 8"),
        ("gb200:8", r"a host has 1, 2, 4 GPUs of gb200"),
        ("gb200:20x4", r"NVLink connects 18 hosts of gb200; use a multiple of 18"),
    ],
)
def test_what_does_not_exist_is_told_in_one_line(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_a_chip_of_ironwood_is_two_devices():
    for name, chips in (("tpu7x:1x1x1", 1), ("tpu7x:2x2x1", 4), ("tpu7x:4x4x4", 64), ("2 x tpu7x:4x8x8", 512)):
        topology = parse(name)
        assert (str(topology), topology.chips, topology.devices) == (name, chips, 2 * chips)
        assert topology.grid == (*topology.shape, 2) and topology.device_kind == "TPU7x"
    assert parse("tpu7x:4x4x4").described()["wrap"] == (True, True, True)
    assert "chip_config_name" not in parse("tpu7x:2x2x1").described()  # as of a v5p, whose chip is one device
    for name in ("v5p:4x4x4", "h100:2x8"):
        assert parse(name).devices == parse(name).chips
    assert parse("v5e:4x4").grid == (4, 4)


@pytest.mark.parametrize(
    ("text", "chips", "domain", "told"),
    [
        ("h100:1", 1, 1, "1x1x1"),
        ("h100:8", 8, 8, "1x1x8"),
        ("h100:16x8", 128, 8, "16x1x8"),  # NVLink ends at the host
        ("gb200:4", 4, 4, "1x1x4"),
        ("gb200:9x4", 36, 36, "1x9x4"),
        ("gb200:36x4", 144, 72, "2x18x4"),  # NVLink connects the 18 hosts of a rack
        ("l4:2", 2, 2, "1x1x2"),
    ],
)
def test_a_name_says_hosts_and_gpus(text, chips, domain, told):
    topology = parse(text)
    assert (str(topology), topology.chips, topology.of_domain, topology.slices) == (text, chips, domain, 1)
    assert topology.described()["topology"] == told and topology.described()["platform"] == "cuda"
    assert topology.device_kind == CHIPS[topology.generation].device_kinds[0]


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.gpu])
def test_the_compiler_is_told_what_the_entry_says(name):
    chip, told = CHIPS[name], parse(f"{name}:1").described()["target_config"]
    found = {name: value.strip('"') for name, value in re.findall(r'(\w+): ("[^"]*"|\S+)', told)}
    assert int(found["core_count"]) == chip.gpu.multiprocessors
    assert int(found["device_memory_size"]) == chip.gpu.memory_bytes > chip.hbm_bytes
    assert float(found["memory_bandwidth"]) == chip.hbm_bandwidth
    assert (int(found["major"]), int(found["minor"])) == chip.gpu.capability
    assert found["feature_extension"] == ("ACCELERATED_FEATURES" if chip.gpu.capability[0] >= 9 else "NONE")
    assert found["device_description_str"] == chip.device_kinds[0]
    # The published peak in float32, without tensor cores, is two FLOPs a lane and cycle.
    peaks = {"a100": 19.5e12, "h100": 67e12, "h200": 67e12, "b200": 75e12, "gb200": 80e12, "l4": 30.3e12}
    assert 2 * chip.gpu.multiprocessors * chip.gpu.lanes * chip.clock == pytest.approx(peaks[name], rel=0.02)
