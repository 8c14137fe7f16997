"""The whole run: what interruptions lose, what files take, and prices."""

import dataclasses

import pytest

from tests.conftest import ROOT
from tpullm.errors import UserError
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.slices import parse
from tpullm.planning.economics import RESTART_SECONDS, prices_of, whole_run
from tpullm.planning.estimate import estimate
from tpullm.planning.setting import setting_of
from tpullm.recipe.parsing import load


def run(hours_between=0.0, prices=None, **checkpoint):
    recipe = load(ROOT / "configs" / "pretrain" / "8b.yaml")
    saves = dataclasses.replace(recipe.pretrain.checkpoint, **checkpoint)
    config = dataclasses.replace(recipe.pretrain, checkpoint=saves)
    setting = setting_of(recipe.model.resolved(128256), config, recipe.mesh, parse(recipe.topology))
    return whole_run(config, setting, estimate(setting), 96_000_000_000, prices or {}, hours_between)


def test_interruptions_lose_a_restart_and_half_of_the_time_between_saves():
    quiet, disturbed = run(), run(12, every_minutes=60, every_steps=0)
    assert quiet.goodput == 1 and quiet.interruptions == 0
    lost = RESTART_SECONDS + disturbed.save_seconds + 1800
    assert disturbed.goodput == pytest.approx(12 * 3600 / (12 * 3600 + lost))
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
