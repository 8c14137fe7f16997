"""A plan on a small model: the order of proofs, slices, and its plain values."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.planning.by_hand import setting
from tpullm.planning.economics import estimate
from tpullm.planning.memory import resting
from tpullm.planning.plans import VERSION, Plan, make_plan, on_slices, to_json, with_proofs
from tpullm.planning.search import assessed
from tpullm.recipe.parsing import load
from tpullm.system.errors import UserError

SMALL = ["--model.layers=2", "--pretrain.batch_size=64", "--pretrain.accumulation=1"]
RECIPE = load(ROOT / "configs" / "pretrain" / "125m.yaml", SMALL)
MODEL = RECIPE.model.resolved(RECIPE.tokenizer.vocabulary_size)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(RECIPE, MODEL, "v5e:4x4", ["v5e=3"], 24.0)


def proof(**fields):
    return SimpleNamespace(**{"refused": "", "step_seconds": 1.0} | fields)


def test_a_plan_is_of_the_recipe_as_it_is(plan):
    assert plan.recipe.pretrain == RECIPE.pretrain and plan.recipe.topology == "v5e:4x4" and plan.found is None
    assert plan.run.dollars == {"given": pytest.approx(plan.run.days * 24 * 16 * 3, abs=0.01)}
    assert plan.dollars == plan.run.dollars["given"] and plan.run.hours_between == 24
    assert dataclasses.replace(plan, run=dataclasses.replace(plan.run, dollars={})).dollars == 0
    assert plan.fits and plan.advice is None and plan.proofs == ()
    assert plan.run.checkpoint_bytes == resting(MODEL, RECIPE.pretrain.optimizer).total()
    assert plan.run.step_seconds == plan.chosen.estimate.step_seconds


def test_a_searched_plan_is_the_best_way(plan):
    found = make_plan(RECIPE, MODEL, "v5e:4x4", searched=True)
    assert found.chosen is found.found.best[0] and found.run.step_seconds <= plan.run.step_seconds
    values = to_json(found)
    assert values["search"]["best"][0]["behind"] == "" != values["search"]["best"][1]["behind"]
    one = found.found.best[1]
    assert values["search"]["best"][1]["waiting_seconds"] == sum(one.estimate.exposed.values())
    assert values["search"]["screened"] == found.found.screened >= values["search"]["fitting"] > 0


def test_the_fastest_that_the_compiler_lets_fit_is_chosen(plan):
    one, two, three = (
        assessed(
            dataclasses.replace(plan.chosen.setting, accumulation=parts), resting(MODEL, RECIPE.pretrain.optimizer)
        )
        for parts in (1, 2, 1)
    )
    pairs = [(one, proof(step_seconds=5.0)), (two, proof(step_seconds=3.0)), (three, proof(refused="no"))]
    found = with_proofs(plan, pairs)
    assert found.chosen is two and found.proven == (pairs[1], pairs[0], pairs[2]) and found.fits
    assert found.recipe.pretrain.accumulation == 2
    scale = two.estimate.step_seconds / plan.run.step_seconds
    assert found.run.step_seconds == pytest.approx(two.estimate.step_seconds)
    assert found.run.days == pytest.approx(scale * plan.run.days)
    assert found.run.dollars["given"] == pytest.approx(scale * plan.run.dollars["given"])
    none = with_proofs(plan, pairs[2:])
    assert none.chosen is plan.chosen and not none.fits and none.run == plan.run


def test_slices_take_the_axis_data():
    assert on_slices(RECIPE, "v5e:4x4", 0) == (RECIPE, "v5e:4x4") == on_slices(RECIPE, "v5e:4x4", 0)
    assert on_slices(RECIPE, "local", 2) == (RECIPE, "local")
    recipe, name = on_slices(dataclasses.replace(RECIPE, mesh={"data": 4, "fsdp": -1}), "v5e:4x4", 2)
    assert name == "2 x v5e:4x4" and recipe.mesh == {"data": 2, "fsdp": -1}
    with pytest.raises(UserError, match="mesh.data: 1 can't be shared by 2 slices; use a multiple of 2"):
        make_plan(RECIPE, MODEL, name)
    found = make_plan(recipe, MODEL, name)
    assert found.chosen.setting.sizes == (2, 16, 1, 1, 1)


def test_plain_values(plan):
    values = to_json(plan)
    found = plan.chosen.estimate
    assert (values["topology"], values["chips"], values["fits"]) == ("v5e:4x4", 16, True)
    assert values["limit_bytes"] == round(15.75 * 2**30) and values["peak_bytes"] == round(plan.chosen.memory.peak)
    assert values["mfu"] == found.mfu and values["exposed_seconds"] == found.exposed
    assert values["search"] is None and values["advice"] is None and values["proofs"] == []
    small = setting(fsdp=16, chip={"hbm_bytes": 1})
    none = dataclasses.replace(plan, chosen=assessed(small, resting(small.model, small.optimizer)))
    assert to_json(none)["step_seconds"] == estimate(small).step_seconds  # also of what does not fit
    assert VERSION == 1


def test_what_the_chip_can_not_hold_is_refused():
    model = dataclasses.replace(MODEL, attention_block=2048)
    with pytest.raises(UserError, match="2048 does not fit the memory on the chip of a TPU v5 lite; use 1024 or less"):
        make_plan(RECIPE, model, "v5e:4x4")
    assert make_plan(RECIPE, model, "v6e:4x4").chosen.setting.block == 2048
