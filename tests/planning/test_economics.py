"""The estimate of a step, against published runs that no constant was fitted to; and the whole run: files,
interruptions, prices."""

import dataclasses
import re
import statistics
from types import SimpleNamespace

import pytest
from fit import errors

from tests.conftest import ROOT
from tests.planning.by_hand import DENSE, setting, shipped
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import training_flops_per_token
from tpullm.planning.economics import RESTART_SECONDS_HERE, Estimate, estimate_step, prices_of, whole_run
from tpullm.planning.setting import RECOMPUTED, with_remat
from tpullm.recipe.schema import CheckpointConfig, TrainConfig
from tpullm.run.hours import share_kept
from tpullm.system.errors import UserError

# Published speeds that the estimate misses by more than a tenth, and why it could not meet them.
MISSED = {
    "1024b on v5p:8x8x16": "the same program a chip as on 8x16x16, published 15 % slower",
    "256b on v5p:8x8x8": "as many rows a chip and wider products than 128b, published slower",
    "256b on 2 x v5p:8x8x8": "as with one slice",
    "mixtral-8x7b on v6e:16x16 (recipes)": "published twice, 7 % apart; the later one is met",
    "mixtral-8x7b on h200:32x8": "its all-reduces between hosts are counted as waited for",
    "gpt-175b on h100:32x8": "of 2023, with another program",
}


def test_what_is_computed_again_costs_time_and_nothing_else_does():
    found = {remat: estimate_step(with_remat(shipped("8b"), remat)) for remat in RECOMPUTED}
    steps = {remat: one.step_seconds for remat, one in found.items()}
    assert steps["none"] == steps["save_dots"] < steps["save_attention"] < steps["full"]
    assert found["full"].computing["recomputed"] > 0 and found["none"].computing["recomputed"] == 0
    assert found["full"].tokens_per_second < found["none"].tokens_per_second


def published_errors(use: str, *tables: str) -> list[tuple[str, float]]:
    """Of the runs in these tables of the documentation."""
    return [(run.name, error) for run, error in errors(CHIPS) if run.use == use and run.table in tables]


def sizes(found: list[tuple[str, float]]) -> list[float]:
    """How far off they are, in either direction."""
    return [abs(error) for _, error in found]


def test_published_runs_of_ironwood_are_met_but_where_the_documentation_says_why():
    """Of 70 B and 405 B in rows of 8,192 tokens; docs/en/planning.md has the others, and why they are missed."""
    ((_, fit),), held = published_errors("fit", "tpu7x"), published_errors("held", "tpu7x")
    met = [error for name, error in held if name.startswith("llama3.1") and "rows" not in name]
    assert abs(fit) < 0.01 and len(met) == 5 and max(map(abs, met)) < 0.08 and len(held) == 10


@pytest.mark.parametrize("page", ["en", "ja"])
def test_the_table_of_ironwood_is_what_the_estimate_says(page):
    lines = (ROOT / "docs" / page / "planning.md").read_text(encoding="utf-8").splitlines()
    rows = [re.findall(r"[^|]+", line.replace(" ", "")) for line in lines if "| tpu7x:" in line]
    found = []
    for run, error in ((run, error) for run, error in errors(CHIPS) if run.table == "tpu7x"):
        model, setting = run.name.split(" on ")[0], run.setting
        type_ = "fp8" if setting.model.matmuls == "fp8" else "bfloat16"
        published = run.tokens_per_second
        speeds = f"{published:,.0f}", f"{published * (1 + error):,.0f}", f"{error:+.1%}"
        found.append((model, str(setting.topology), f"{setting.length:,}", type_, *speeds))
    assert [tuple(row) for row in rows] == found


def test_published_runs_that_were_held_out_are_met_and_few_were_fitted_to():
    """Within 10 % each but those named above, and 5 % in the mean; mixtures and 405 B are among them."""
    held = published_errors("held", "TPUs", "GPUs")
    assert len(held) >= 30
    assert statistics.mean(sizes(held)) < 0.05
    assert {name for name, error in held if abs(error) > 0.10} == set(MISSED)
    assert max(sizes(held)) < 0.15
    met = {name.split(" on ")[0] for name, error in held if abs(error) <= 0.10}
    assert {"mixtral-8x7b", "mixtral-8x22b", "llama3.1-405b"} <= met
    fit = published_errors("fit", "TPUs", "GPUs")
    assert len(fit) <= 12 and max(sizes(published_errors("fit", "TPUs"))) < 0.05 and max(sizes(fit)) < 0.10
    # 8 % in the mean and 15 % at most: the runs are of four machines and three years.
    held = sizes(published_errors("held", "GPUs"))
    assert len(held) >= 8 and statistics.mean(held) < 0.08 and max(held) < 0.15


def test_speed_and_price_are_of_a_chip_and_mfu_of_the_peak_of_its_devices():
    config = TrainConfig(steps=1000)
    of = setting(DENSE, "tpu7x:4x4x4", fsdp=128, rows=512, chip={"devices_per_chip": 2})
    found = estimate_step(of)
    assert found.tokens_per_second == pytest.approx(512 * 256 / found.step_seconds / 64)
    flops = training_flops_per_token(DENSE, 256) * 512 * 256
    assert found.mfu == pytest.approx(flops / found.step_seconds / (128 * of.device.peak_flops))
    run = whole_run(config, of, Estimate(9.0, {}, {}, (), 1.0, 1.0), 16_000_000_000, {"on_demand": 2.0})
    assert run.dollars == {"on_demand": 2.5 * 64 * 2}
    assert run.save_seconds == 2  # 16 hosts of four chips


def test_a_given_price_takes_the_place_of_the_list_and_0_is_a_price():
    listed = CHIPS["v5e"].dollars_per_hour
    assert prices_of("v5e", []) == listed and prices_of("v5e", ["v6e=1"]) == listed
    assert prices_of("v5e", ["v5e=0.5"]) == {"given": 0.5} and prices_of("local", []) == {}
    for wrong in ("v5e", "v5e=-1", "v7=1"):
        with pytest.raises(UserError, match="is not GENERATION=DOLLARS"):
            prices_of("v5e", [wrong])
    assert prices_of("v6e", ["v6e=0"]) == {"given": 0.0} and prices_of("v6e", ["v5e=1", "v6e=2"]) == {"given": 2.0}
    for wrong in ("v6e=inf", "v6e=nan", "v6e=", "v6e=-0.1", "=1"):
        with pytest.raises(UserError, match="there are v4, v5e, v6e, v5p"):
            prices_of("v6e", [wrong])


def by_hand(hours_between=0.0, chips="v6e:4x4", vocabulary=1 << 16, prices=None, **checkpoint):
    """1,000 steps of 9 s; a checkpoint of 12e9 bytes."""
    saves = CheckpointConfig(**{"every_minutes": 0, "every_steps": 0} | checkpoint)
    config = TrainConfig(steps=1000, checkpoint=saves)
    of = setting(dataclasses.replace(DENSE, vocabulary_size=vocabulary), chips, fsdp=parse(chips).chips, rows=512)
    found = Estimate(9.0, {}, {}, (), 1.0, 1.0)
    return whole_run(config, of, found, 12_000_000_000, prices or {}, hours_between)


def test_a_run_by_hand_and_none_where_nothing_is_kept():
    found = by_hand(prices={"on_demand": 2.0})
    assert (found.steps, found.step_seconds, found.tokens) == (1000, 9.0, 1000 * 512 * 256)
    assert found.days == 9000 / 86400 and found.dollars == {"on_demand": 2.5 * 16 * 2}
    assert found.save_seconds == 12e9 / (4 * 0.5e9) and by_hand(chips="v6e:1x1").save_seconds == 24
    assert found.token_store_bytes == 2 * found.tokens and found.checkpoint_bytes == 12_000_000_000
    assert by_hand(vocabulary=(1 << 16) + 1).token_store_bytes == 4 * found.tokens
    assert (found.interruptions, found.hours_between, found.goodput) == (0, 0, 1)
    # A save takes 9,000 s, and there are 9 s until the next interruption.
    with pytest.raises(UserError, match="--interruptions: 0.0025 hours are too few to keep work; save more often"):
        by_hand(0.0025)


def test_a_restart_of_ones_own():
    """On this machine nobody waits for chips."""
    config, of = TrainConfig(steps=1000), setting(DENSE, "v6e:4x4", fsdp=16, rows=512)
    local = dataclasses.replace(of, topology=SimpleNamespace(generation="local", chips=1))
    arguments = (Estimate(9.0, {}, {}, (), 1.0, 1.0), 12_000_000_000, {}, 2.0)
    assert whole_run(config, local, *arguments).restart_seconds == RESTART_SECONDS_HERE
    assert whole_run(config, of, *arguments, 7.0).restart_seconds == 7.0
    assert whole_run(config, of, *arguments, 7.0).goodput > whole_run(config, of, *arguments).goodput


@pytest.mark.parametrize(
    ("checkpoint", "between_saves"),
    [
        ({"every_steps": 100}, 900),
        ({"every_minutes": 10}, 600),
        ({"every_steps": 100, "every_minutes": 10}, 600),
        ({"every_steps": 50, "every_minutes": 10}, 450),
        ({"every_minutes": 0.05}, 9),  # no more often than a step ends
        ({"every_minutes": 10, "local": "/disk", "local_every_minutes": 1}, 60),
        ({"every_minutes": 10, "local": "/disk", "local_every_minutes": 0, "local_every_steps": 10}, 90),
        ({}, 9000),  # only at the end
    ],
)
def test_what_an_interruption_loses(checkpoint, between_saves):
    """A restart, a restore and a save of 6 s, and what was trained since the last save."""
    found = by_hand(2.0, **checkpoint)
    assert found.goodput == share_kept(600 + 6, 6, between_saves, 7200)
    assert (found.restart_seconds, found.between_saves_seconds) == (600, between_saves)
    assert found.interruptions == pytest.approx(2.5 / 2 / found.goodput) and found.hours_between == 2
