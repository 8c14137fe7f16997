"""What one entry says agrees with itself and with the others; and everything knows a chip that is added as an entry."""

import json
from itertools import chain

import pytest

from tests.conftest import ROOT
from tpullm.cli import main
from tpullm.hardware import chips, machines
from tpullm.hardware.chips import CHIPS, Chip, CloudTpu, Cycles, Gke, SliceShapes, of_kind
from tpullm.hardware.topologies import parse
from tpullm.planning.economics import prices_of
from tpullm.system.errors import UserError


def test_no_two_chips_have_a_name_in_common():
    kinds = [*chain(*(chip.device_kinds for chip in CHIPS.values()))]
    families = [chip.cloud_tpu.name for chip in CHIPS.values() if chip.cloud_tpu]
    assert len(kinds) == len(set(kinds)) and len(families) == len(set(families))
    assert all(of_kind(kind) is chip for chip in CHIPS.values() for kind in chip.device_kinds)
    unknown = of_kind("a chip of tomorrow")
    assert unknown.peak_flops == 0 and unknown.slices is None and unknown.ragged_exchange


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.gke])
def test_a_machine_type_with_tpus_is_no_machine_but_a_part_of_a_slice(name):
    with pytest.raises(UserError, match=f"has TPUs; give its slice: launch gke --accelerator {name}:SHAPE"):
        machines.find(f"{CHIPS[name].gke.machines}standard-4t")


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.cloud_tpu])
def test_every_accelerator_is_whole_chips_of_whole_hosts(name):
    cloud = CHIPS[name].cloud_tpu
    for size in cloud.sizes:
        found = machines.find_slice(f"{cloud.name}-{size}")
        assert found.chips * cloud.cores == size and found.chips % found.hosts == 0
        assert found.hosts == 1 or found.chips == found.hosts * CHIPS[name].chips_per_host
        assert found.dollars_an_hour == found.chips * CHIPS[name].dollars_per_hour["on_demand"]


@pytest.mark.parametrize("name", CHIPS)
def test_what_can_be_planned_has_all_figures(name):
    chip = CHIPS[name]
    assert chip.peak_flops > 0
    if chip.slices:
        assert chip.dollars_per_hour["spot"] <= chip.dollars_per_hour["on_demand"]
        bandwidths = (chip.host_bandwidth, chip.dcn_bandwidth, chip.link_bandwidth, chip.hbm_bandwidth)
        assert 0 < bandwidths[1] <= bandwidths[2] <= bandwidths[3] and bandwidths[0] > 0
        assert (chip.device_link_bandwidth > chip.link_bandwidth) == (chip.devices_per_chip > 1)
        assert 0 < chip.matmul_efficiency <= 1 and 0 < chip.attention_efficiency <= 1
        assert chip.hbm_bytes / 2**30 == pytest.approx(chip.memory_gib, rel=0.05) and chip.attention


def test_ironwood_is_as_published_and_not_made_by_the_cloud_tpu_api():
    """docs.cloud.google.com/tpu/docs/tpu7x, of a chip: 2,307 TFLOP/s, 192 GiB at 7,380 GB/s, 100 Gbit/s."""
    chip, two = CHIPS["tpu7x"], CHIPS["tpu7x"].devices_per_chip
    assert (two * chip.peak_flops, two * chip.memory_gib, two * chip.hbm_bandwidth) == (2307e12, 192, 7380e9)
    assert (two * chip.dcn_bandwidth, 6 * 2 * chip.link_bandwidth) == (100e9 / 8, 1200e9) and chip.fp8
    assert of_kind("TPU7x") is chip and chip.chips_per_host == 4
    # Four matrix units of 256 x 256 at the clock are the peak.
    assert 2 * 4 * 256**2 * chip.clock == pytest.approx(chip.peak_flops, rel=1e-3)
    with pytest.raises(UserError, match="tpu7x-128 is not made by the Cloud TPU API, but by GKE; launch it on gke, as"):
        machines.find_slice("tpu7x-128")


CHIP = Chip(
    ("TPU v9 test",),
    peak_flops=1e15,
    dollars_per_hour={"on_demand": 5.0, "spot": 2.0},
    memory_gib=64,
    hbm_bytes=63 * 2**30,
    hbm_bandwidth=3e12,
    link_bandwidth=2e11,
    dcn_bandwidth=1e10,
    host_bandwidth=2e10,
    matmul_efficiency=0.8,
    attention_efficiency=0.7,
    clock=2e9,
    attention={
        block: dict.fromkeys(("forward", "queries", "keys", "all"), Cycles(block, 100, 90)) for block in (512, 1024)
    },
    slices=SliceShapes(dimensions=2, wraps=8, largest=64, small=((2, 2), (4, 4), (4, 8), (8, 8))),
    cloud_tpu=CloudTpu("v9test", 1, (4, 16, 32), 4, "v9-alpha"),
    gke=Gke("tpu-v9-slice", "ct9t-"),
)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(chips.CHIPS, "v9t", CHIP)


def dry_run(capsys, *words, mesh="{fsdp: -1}", refused=False):
    place = ["--dry-run", "--project=p", "--zone=us-central1-a"]
    recipe = ["--", "pretrain", "--config", str(ROOT / "tests" / "tiny.yaml"), "--run", "gs://b/tiny", "--mesh", mesh]
    assert main.main(["launch", *words[:1], *place, *words[1:], *recipe]) == 2 * refused
    return capsys.readouterr()[refused]


def test_plan_and_sharding_know_its_slices_speed_memory_and_price(added, capsys, tmp_path):
    words = ["plan", "--config", str(ROOT / "configs" / "pretrain" / "125m.yaml"), "--run", str(tmp_path)]
    assert main.main([*words, "--topology=v9t:4x4", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["chips"] == 16 and plan["limit_bytes"] == 63 * 2**30 and 0 < plan["mfu"] < 1
    assert plan["run"]["dollars"]["on_demand"] == pytest.approx(plan["run"]["days"] * 24 * 16 * 5, rel=1e-3)
    assert prices_of("v9t", ["v9t=1"]) == {"given": 1.0}
    words = ["sharding", "--config", str(ROOT / "configs" / "pretrain" / "125m.yaml"), "--run", str(tmp_path)]
    assert main.main([*words, "--topology=v9t:4x8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == {"fsdp": 32}
    assert parse("v9t:8x8").described()["wrap"] == (True, True, False) and parse("v9t:8x8").device_kind == "TPU v9 test"
    with pytest.raises(UserError, match="no such slice of v9t"):
        parse("v9t:2x4")


def test_a_slice_of_ironwood_has_twice_as_many_devices(capsys):
    words = "gke", "--accelerator=tpu7x:4x4x4"
    printed = dry_run(capsys, *words, mesh="{fsdp: 64, tensor: 2}")
    assert "gke-tpu-accelerator: tpu7x\n" in printed and "gke-tpu-topology: 4x4x4\n" in printed
    assert "completions: 16\n" in printed and "google.com/tpu: '4'\n" in printed
    line = dry_run(capsys, *words, mesh="{fsdp: 64}", refused=True)
    assert "{fsdp: 64} needs 64 and does not fit 128 device(s)" in line


def test_launch_knows_its_accelerators_and_machines(added, capsys):
    printed = dry_run(capsys, "tpu-vm", "--accelerator=v9test-32")
    assert "acceleratorType: v9test-32\n" in printed and "runtimeVersion: v9-alpha\n" in printed
    found = machines.find_slice("v9test-32")
    assert (found.chips, found.hosts, found.dollars_an_hour) == (32, 8, 160.0)
    with pytest.raises(UserError, match="use v9test-4 or v9test-16"):
        machines.find_slice("v9t-8")
    printed = dry_run(capsys, "gke", "--accelerator=v9t:4x8")
    assert "gke-tpu-accelerator: tpu-v9-slice\n" in printed and "completions: 8\n" in printed
