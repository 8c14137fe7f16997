"""Plans as text: exactly what is shown of a plan whose numbers are round."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.planning.by_hand import setting
from tpullm.hardware.chips import PRICES_DATE
from tpullm.planning.economics import Estimate, Run
from tpullm.planning.memory import Memory
from tpullm.planning.plan_tables import GIB, plan_details, plans_side_by_side
from tpullm.planning.plans import Plan
from tpullm.planning.routes import Transfer
from tpullm.planning.search import Advice, Candidate, Found
from tpullm.recipe.schema import Recipe, TrainConfig
from tpullm.report.tables import WIDTH, bar

CHIP = {"hbm_bytes": 16 * GIB}
TRANSFERS = (Transfer("fsdp", "gathers", 2e9, 0.5), Transfer("data", "sums", 3e6, 0.001, True))
ESTIMATE = Estimate(2.0, {"loss": 1.0, "attention": 0.595, "norms": 0.005}, {"fsdp": 0.4}, TRANSFERS, 1234.4, 0.456)
MEMORY = Memory({"parameters": 6.0 * GIB, "scores": 1.97 * GIB, "small": 0.03 * GIB}, "loss")
RUN = Run(4_000_000, 1000, 2.0, 1.5, {"on_demand": 1234.4, "spot": 9.999}, 8_000_000, 2 * 10**12, 3.0, *[0.0] * 4, 1.0)
RECIPE = Recipe(name="mine", pretrain=TrainConfig(batch_size=16, sequence_length=256, steps=1000))


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def chosen_way(setting_=None, memory=MEMORY, estimate=ESTIMATE) -> Candidate:
    found = Candidate(setting_ or setting(fsdp=16, chip=CHIP), memory)
    vars(found)["estimate"] = estimate
    return found


def plan(chosen: Candidate | None = None, *, fits: bool = True, **fields) -> Plan:
    advice = None if fits else Advice(2.5 * GIB, "scores", 1.5 * GIB, "model.remat: full")
    return Plan(**{"recipe": RECIPE, "chosen": chosen or chosen_way(), "run": RUN, "advice": advice} | fields)


def test_a_plan_on_a_page():
    head, memory, time, run = plan_details(plan()).split("\n\n")
    mesh = "mesh {fsdp: 16}, model.remat full, pretrain.accumulation 1, pretrain.optimizer.moments float32"
    assert head == f"mine on v6e:4x4, 16 chips, 1,000 steps of 4,096 tokens\n{mesh}"
    assert memory.splitlines() == [
        "peak memory of a chip, in the loss",
        f"parameters  6.00 GiB  {bar(6 / 16)}",
        f"scores      1.97 GiB  {bar(1.97 / 16)}",
        "together    8.00 GiB  of 16.00",
    ]
    lines = time.splitlines()
    assert lines[0] == "a step: 2 s, 1,234 tokens/s a chip, MFU 46%"
    assert lines[1:4] == [
        f"loss                 1 s  50%  {bar(0.5)}",
        f"attention         595 ms  30%  {bar(0.2975)}",
        f"waiting for fsdp  400 ms  20%  {bar(0.2)}",
    ]
    assert lines[5].split() == ["fsdp:", "gathers", "2", "GB", "500", "ms", "beside", "the", "matmuls"]
    assert lines[6].split() == ["data:", "sums", "3", "MB", "1", "ms", "waited", "for"]
    assert run.splitlines() == [
        "the whole run: 4 million tokens, 1.50 days, 1,234 dollars (on demand), 10.00 dollars (spot)",
        f"  list prices of {PRICES_DATE}; yours with --price GENERATION=DOLLARS a chip-hour",
        "  token store 8 MB, a checkpoint 2 TB, saved in 3 s while training continues",
    ]


@pytest.mark.parametrize(("gib", "shown"), [(0.04, ["one", "two"]), (0.02, ["all else"])])
def test_small_parts_are_one(gib, shown):
    chosen = chosen_way(memory=Memory({"parameters": 6.0 * GIB, "one": gib * GIB, "two": gib * GIB}, "loss"))
    lines = plan_details(plan(chosen)).split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["parameters", *shown, "together"]
    assert "0.04 GiB" in lines[2]


def test_what_does_not_fit_has_neither_time_nor_price():
    told = plan_details(plan(fits=False))
    assert "IT DOES NOT FIT: 2.50 GiB a chip are missing; scores is largest, 1.50 GiB; it fits with model.r" in told
    assert "a step" not in told and "dollars" not in told
    none = Advice(1.0, "scores", 1.0, "")
    told = plan_details(plan(fits=False, advice=none))
    assert "no change of one key makes it fit; try --search, or more chips" in told
    searched = plan(fits=False, advice=none, found=Found(3, 0, 0.1, ()))
    assert "makes it fit; take more chips" in plan_details(searched)
    assert "searched: 3 ways in 100 ms, 0 fit" in plan_details(searched)
    assert "█" * WIDTH in plan_details(plan(chosen_way(memory=Memory({"x": 32.0 * GIB}, "loss")), fits=False))


def test_given_prices_interruptions_and_counted_devices():
    often = {"hours_between": 24.0, "interruptions": 2.25, "goodput": 0.9876, "restart_seconds": 600}
    run = dataclasses.replace(RUN, dollars={"given": 5.0}, **often)
    told = plan_details(plan(run=run))
    assert "5.00 dollars (given)" in told and "list prices" not in told
    assert "  interrupted every 24 hours in the mean, 2.2 times, 600 s to start again\n  goodput 98.8%, in the" in told
    assert "list prices" not in plan_details(plan(run=dataclasses.replace(RUN, dollars={})))
    one = plan_details(plan(chosen_way(setting(topology="v6e:1x1", chip=CHIP))))
    assert one.startswith("mine on v6e:1x1, 1 chip, ")
    assert "over the links" not in plan_details(plan(chosen_way(estimate=dataclasses.replace(ESTIMATE, transfers=()))))
    here = SimpleNamespace(generation="local", chips=2, devices=2, __str__=lambda self: "local")
    local = dataclasses.replace(setting(fsdp=16, chip=CHIP), topology=here)
    assert ", 2 devices, " in plan_details(plan(chosen_way(local)))


def test_plans_side_by_side():
    one = setting(topology="v6e:1x1", chip=CHIP, attention_block=256, loss_chunks=4)
    short = dataclasses.replace(RUN, days=0.049, dollars={"given": 3.0})
    rows = plans_side_by_side([plan(), plan(chosen_way(one), run=short), plan(fits=False)]).splitlines()
    cells = [row.split("  ") for row in rows]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert cells[0] == ["tokens/s", "dollars", "dollars", "dollars"]
    kinds = ["on demand", "spot", "given"]
    assert cells[1] == ["topology", "chips", "GiB a chip", "step", "a chip", "MFU", "days", *kinds]
    way = "mesh {fsdp: 16}, remat full, accumulation 1"
    assert cells[2] == ["v6e:4x4", "16", "8.0 of 16.0", "2 s", "1,234", "46%", "1.5", "1,234", "10.00", "-", way]
    way = "mesh {fsdp: 1}, remat full, accumulation 1, block 256, chunks 4"
    assert cells[3] == ["v6e:1x1", "1", "8.0 of 16.0", "2 s", "1,234", "46%", "< 0.1", "-", "-", "3.00", way]
    assert cells[4] == ["v6e:4x4", "16", "8.0 of 16.0", *["-"] * 7, "DOES NOT FIT; it fits with model.remat: full"]


def test_what_was_searched_and_what_the_compiler_said():
    other = chosen_way(setting(fsdp=8, tensor=2, chip=CHIP), estimate=dataclasses.replace(ESTIMATE, step_seconds=4.0))
    best = chosen_way()
    lines = plan_details(plan(found=Found(1500, 20, 2.0, (best, other)))).split("\n\n")[-1].splitlines()
    assert lines[0] == "searched: 1,500 ways in 2 s, 20 fit"
    assert lines[2].split() == ["{fsdp:", "16}", "full", "1", "256", "1", "8.0", "2", "s", "400", "ms"]
    assert lines[3].split()[:8] == ["{fsdp:", "8,", "tensor:", "2}", "full", "1", "256", "1"]
    assert "100.0% slower" in lines[3] and "slower" not in lines[2]
    findings = (SimpleNamespace(text="change this"),)
    proof = SimpleNamespace(refused="", step_seconds=3.0, peak_bytes=5 * GIB, findings=findings)
    refused = SimpleNamespace(refused="too large", step_seconds=0.0, peak_bytes=20 * GIB, findings=())
    chosen = chosen_way()
    lines = plan_details(plan(proven=((chosen, proof), (chosen, refused)))).split("\n\n")[-1].splitlines()
    assert lines[1].split()[-7:] == ["5.00", "GiB", "(8.00)", "3", "s", "(2", "s)"]
    assert lines[2].endswith("  20.00 GiB (8.00)  DOES NOT FIT")
    assert lines[3:] == ["  change this"]
    lines = plan_details(plan(proven=((chosen, refused),))).split("\n\n")[-1].splitlines()
    assert lines[-1] == "  too large"
    assert plans_side_by_side([plan(proven=((chosen, proof),))]).endswith("; compiled: 3 s a step")
    assert plans_side_by_side([plan(proven=((chosen, refused),))]).endswith("DOES NOT FIT, says the compiler")
