"""The whole run: what interruptions lose, what files take, and prices."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.planning.by_hand import DENSE
from tests.planning.by_hand import setting as small
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.topologies import parse
from tpullm.planning.economics import RESTART_SECONDS, RESTART_SECONDS_HERE, Estimate, estimate, prices_of, whole_run
from tpullm.planning.setting import setting_of
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import CheckpointConfig, TrainConfig
from tpullm.run.hours import kept
from tpullm.system.errors import UserError


def run(hours_between=0.0, prices=None, **checkpoint):
    recipe = load(ROOT / "configs" / "pretrain" / "8b.yaml")
    saves = dataclasses.replace(recipe.pretrain.checkpoint, **checkpoint)
    config = dataclasses.replace(recipe.pretrain, checkpoint=saves)
    setting = setting_of(recipe.model.resolved(128256), config, recipe.mesh, parse(recipe.topology))
    return whole_run(config, setting, estimate(setting), 96_000_000_000, prices or {}, hours_between)


def test_interruptions_lose_a_restart_and_half_of_the_time_between_saves():
    quiet, disturbed = run(), run(12, every_minutes=60, every_steps=0)
    assert quiet.goodput == 1 and quiet.interruptions == 0
    lost = RESTART_SECONDS + 2 * disturbed.save_seconds + 1800
    assert disturbed.goodput == pytest.approx(1 - lost / (12 * 3600), abs=0.01), "to the first order"
    assert disturbed.days == pytest.approx(quiet.days / disturbed.goodput)


def test_the_rarer_saves_and_the_more_interruptions_the_less_is_kept():
    assert (
        run(12, every_minutes=10).goodput
        > run(12, every_minutes=120, every_steps=0).goodput
        > run(4, every_minutes=120, every_steps=0).goodput
    )
    # Whichever comes first makes a save.
    assert run(12, every_minutes=120, every_steps=100).goodput == run(12, every_minutes=0, every_steps=100).goodput


def test_hosts_write_a_save_together():
    assert run().save_seconds == pytest.approx(96e9 / (64 * 0.5e9))


def test_prices_are_per_chip_and_hour():
    found = run(prices={"on_demand": 2.0, "spot": 1.0})
    assert found.dollars["on_demand"] == pytest.approx(found.days * 24 * 256 * 2, abs=0.02)
    assert found.dollars["spot"] == pytest.approx(found.dollars["on_demand"] / 2, abs=0.02)


def test_a_given_price_takes_the_place_of_the_list():
    listed = CHIPS["v5e"].dollars_per_hour
    assert prices_of("v5e", []) == listed and prices_of("v5e", ["v6e=1"]) == listed
    assert prices_of("v5e", ["v5e=0.5"]) == {"given": 0.5} and prices_of("local", []) == {}
    for wrong in ("v5e", "v5e=-1", "v7=1"):
        with pytest.raises(UserError, match="is not GENERATION=DOLLARS"):
            prices_of("v5e", [wrong])


def by_hand(hours_between=0.0, chips="v6e:4x4", vocabulary=1 << 16, prices=None, **checkpoint):
    """1,000 steps of 9 s; a checkpoint of 12e9 bytes."""
    saves = CheckpointConfig(**{"every_minutes": 0, "every_steps": 0} | checkpoint)
    config = TrainConfig(steps=1000, checkpoint=saves)
    of = small(dataclasses.replace(DENSE, vocabulary_size=vocabulary), chips, fsdp=parse(chips).chips, rows=512)
    found = Estimate(9.0, {}, {}, (), 1.0, 1.0)
    return whole_run(config, of, found, 12_000_000_000, prices or {}, hours_between)


def test_a_run_by_hand():
    found = by_hand(prices={"on_demand": 2.0})
    assert (found.steps, found.step_seconds, found.tokens) == (1000, 9.0, 1000 * 512 * 256)
    assert found.days == 9000 / 86400 and found.dollars == {"on_demand": 2.5 * 16 * 2}
    assert found.save_seconds == 12e9 / (4 * 0.5e9) and by_hand(chips="v6e:1x1").save_seconds == 24
    assert found.token_store_bytes == 2 * found.tokens and found.checkpoint_bytes == 12_000_000_000
    assert by_hand(vocabulary=(1 << 16) + 1).token_store_bytes == 4 * found.tokens
    assert (found.interruptions, found.hours_between, found.goodput) == (0, 0, 1)


def test_where_nothing_is_kept_there_is_no_plan():
    """A save takes 9,000 s, and there are 9 s until the next interruption."""
    with pytest.raises(UserError, match="--interruptions: 0.0025 hours are too few to keep work; save more often"):
        by_hand(0.0025)


def test_a_restart_of_ones_own():
    """On this machine nobody waits for chips."""
    config, of = TrainConfig(steps=1000), small(DENSE, "v6e:4x4", fsdp=16, rows=512)
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
    assert found.goodput == kept(600 + 6, 6, between_saves, 7200)
    assert (found.restart_seconds, found.between_saves_seconds) == (600, between_saves)
    assert found.interruptions == pytest.approx(2.5 / 2 / found.goodput) and found.hours_between == 2


def test_a_price_of_nothing_is_a_price():
    assert prices_of("v6e", ["v6e=0"]) == {"given": 0.0} and prices_of("v6e", ["v5e=1", "v6e=2"]) == {"given": 2.0}
    for wrong in ("v6e=inf", "v6e=nan", "v6e=", "v6e=-0.1", "=1"):
        with pytest.raises(UserError, match="there are v4, v5e, v6e, v5p"):
            prices_of("v6e", [wrong])
