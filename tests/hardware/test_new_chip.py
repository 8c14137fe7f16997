"""A chip that is added in one place, as an entry of `CHIPS`, is known to everything that asks about chips."""

import json

import pytest

from tests.conftest import ROOT
from tpullm.cli import main
from tpullm.hardware import chips, machines
from tpullm.hardware.chips import Chip, CloudTpu, ComputeEngine, Cycles, SliceShapes
from tpullm.hardware.topologies import parse
from tpullm.planning.economics import prices_of
from tpullm.system.errors import UserError

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
    compute_engine=ComputeEngine("ct9t-", {"ct9t-standard-4t": (4, 96, 512)}, ((4, 4), (4, 8)), "ubuntu-tpu-v9"),
)


@pytest.fixture(autouse=True)
def _added(monkeypatch):
    monkeypatch.setitem(chips.CHIPS, "v9t", CHIP)


def dry_run(capsys, *words):
    place = ["--dry-run", "--project=p", "--zone=us-central1-a"]
    recipe = ["--", "pretrain", "--config", str(ROOT / "tests" / "tiny.yaml"), "--run", "gs://b/tiny"]
    assert main.main(["launch", *words[:1], *place, *words[1:], *recipe]) == 0
    return capsys.readouterr().out


def test_plan_knows_its_speed_memory_and_price(capsys, tmp_path):
    words = ["plan", "--config", str(ROOT / "configs" / "pretrain" / "125m.yaml"), "--run", str(tmp_path)]
    assert main.main([*words, "--topology=v9t:4x4", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["chips"] == 16 and plan["limit_bytes"] == 63 * 2**30 and 0 < plan["mfu"] < 1
    assert plan["run"]["dollars"]["on_demand"] == pytest.approx(plan["run"]["days"] * 24 * 16 * 5, rel=1e-3)
    assert prices_of("v9t", ["v9t=1"]) == {"given": 1.0}


def test_sharding_knows_its_slices(capsys, tmp_path):
    words = ["sharding", "--config", str(ROOT / "configs" / "pretrain" / "125m.yaml"), "--run", str(tmp_path)]
    assert main.main([*words, "--topology=v9t:4x8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == {"fsdp": 32}
    assert parse("v9t:8x8").described()["wrap"] == (True, True, False) and parse("v9t:8x8").device_kind == "TPU v9 test"
    with pytest.raises(UserError, match="no such slice of v9t"):
        parse("v9t:2x4")


def test_launch_knows_its_accelerators(capsys):
    printed = dry_run(capsys, "tpu-vm", "--accelerator=v9test-32")
    assert "acceleratorType: v9test-32\n" in printed and "runtimeVersion: v9-alpha\n" in printed
    found = machines.find_slice("v9test-32")
    assert (found.chips, found.hosts, found.dollars_an_hour) == (32, 8, 160.0)
    with pytest.raises(UserError, match="use v9test-4 or v9test-16"):
        machines.find_slice("v9t-8")


def test_launch_knows_its_machines(capsys):
    printed = dry_run(capsys, "compute", "--machine=ct9t-standard-4t", "--nodes=4")
    assert "acceleratorTopology: 4x4\n" in printed and "/ubuntu-tpu-v9\n" in printed and "diskType" not in printed
    assert machines.find("ct9t-standard-4t").dollars_an_hour == 20.0
