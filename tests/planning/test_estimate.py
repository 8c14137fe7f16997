"""The estimate: laws that any step obeys, and the published runs that no constant was fitted to."""

import dataclasses
import re
import statistics
import sys

import pytest

from tests.conftest import ROOT
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import matrix_parameters
from tpullm.planning.economics import estimate
from tpullm.planning.routes import traffic
from tpullm.planning.setting import MAXTEXT, OURS, RECOMPUTED, Setting, setting_of, with_remat
from tpullm.planning.step_work import recomputed, useful_flops, work
from tpullm.recipe.parsing import load

sys.path.insert(0, str(ROOT / "benchmarks"))

from published import runs  # noqa: E402

# Published speeds that the estimate misses by more than a tenth, and why it could not meet them.
MISSED = {
    "1024b on v5p:8x8x16": "the same program a chip as on 8x16x16, published 15 % slower",
    "256b on v5p:8x8x8": "as many rows a chip and wider products than 128b, published slower",
    "256b on 2 x v5p:8x8x8": "as with one slice",
    "mixtral-8x7b on v6e:16x16 (recipes)": "published twice, 7 % apart; the later one is met",
    "mixtral-8x7b on h200:32x8": "its all-reduces between hosts are counted as waited for",
    "gpt-175b on h100:32x8": "of 2023, with another program",
}


def setting(name: str, topology: str = "", mesh: dict | None = None, **options) -> Setting:
    """A shipped recipe on a slice."""
    recipe = load(
        ROOT / "configs" / "pretrain" / f"{name}.yaml", [f"--{key}={value}" for key, value in options.items()]
    )
    model = recipe.model.resolved(recipe.tokenizer.vocabulary_size)
    return setting_of(model, recipe.pretrain, mesh or recipe.mesh, parse(topology or recipe.topology))


@pytest.mark.parametrize("name", ["125m", "1b", "8b", "175b", "8x7b"])
def test_products_are_six_for_each_parameter_and_token(name):
    """Forward and two gradients, 2 FLOPs each; a router's float32 products count as what they cost.

    Where experts are spread, their first products are computed again, whatever else is kept.
    """
    of = dataclasses.replace(setting(name), recompute=())
    once = {part: one for part, one in work(of).items() if part != "recomputed"}
    assert (work(of)["recomputed"].grouped_flops > 0) == (of.along("expert") > 1)
    flops = sum(part.flops + part.grouped_flops for part in once.values())
    router = of.model.layers * of.model.width * of.model.experts
    expected = 6 * (matrix_parameters(of.model) - router) * of.global_tokens / of.topology.chips
    assert flops == pytest.approx(expected + 36 * router * of.global_tokens / of.topology.chips, rel=1e-9)
    assert useful_flops(of) < flops + sum(part.kernel_seconds for part in work(of).values()) * of.device.peak_flops


def test_the_devices_of_a_mesh_share_the_work():
    """However the chips are arranged, together they do the same products."""
    meshes = [{"fsdp": 16}, {"data": 4, "fsdp": 4}, {"fsdp": 4, "tensor": 4}, {"fsdp": 8, "sequence": 2}]
    done = [work(setting("1b", "v5e:4x4", mesh))["feed-forward"].flops for mesh in meshes]
    assert done == pytest.approx([done[0]] * len(done))


def test_what_is_computed_again_costs_time_and_nothing_else_does():
    found = {remat: estimate(with_remat(setting("8b"), remat)) for remat in RECOMPUTED}
    steps = {remat: one.step_seconds for remat, one in found.items()}
    assert steps["none"] == steps["save_dots"] < steps["save_attention"] < steps["full"]
    assert found["full"].computing["recomputed"] > 0 and found["none"].computing["recomputed"] == 0
    assert found["full"].tokens_per_second < found["none"].tokens_per_second


def test_parameters_travel_as_often_as_there_are_micro_batches():
    once, twice = (
        {(one.axis, one.what): one.received for one in traffic(dataclasses.replace(setting("8b"), accumulation=parts))}
        for parts in (1, 2)
    )
    assert once and twice == pytest.approx({key: 2 * received for key, received in once.items()})


def test_nothing_goes_over_links_where_there_is_one_chip():
    assert traffic(setting("125m", "v5e:1x1")) == []


def test_experts_are_gathered_by_those_that_hold_them_alone():
    spread, whole = setting("8x7b"), setting("8x7b", mesh={"data": 16, "fsdp": 16})
    gathered = [next(one.received for one in traffic(of) if "gathers" in one.what) for of in (spread, whole)]
    assert gathered[0] < gathered[1] / 5
    assert any(one.what == "dispatch and combine" for one in traffic(spread))


def test_an_attention_block_changes_nothing_else_of_a_published_program():
    of = dataclasses.replace(setting("8x7b"), habits=MAXTEXT, recompute=())
    other = dataclasses.replace(of, habits=dataclasses.replace(MAXTEXT, block=1024, fused=True))
    assert traffic(of) == traffic(other) != traffic(setting("8x7b"))
    assert recomputed(of) == recomputed(other) == ()
    assert recomputed(dataclasses.replace(of, habits=OURS)) == ("up",)


def test_slices_are_joined_by_a_slow_network():
    one, two = estimate(setting("1b", "v5e:8x8")), estimate(setting("1b", "2 x v5e:8x8", {"data": 2, "fsdp": 64}))
    assert "slices" in two.exposed and "slices" not in one.exposed
    assert two.step_seconds > one.step_seconds / 2


def errors() -> dict[str, list[tuple[str, float]]]:
    found = {"fit": [], "held": [], "apart": []}
    for run in runs():
        found[run.use].append((run.name, estimate(run.on(CHIPS)).tokens_per_second / run.tokens_per_second - 1))
    return found


def test_published_runs_that_were_held_out_are_met():
    """Within 10 % each but those named above, and 5 % in the mean; mixtures and 405 B are among them."""
    held = errors()["held"]
    assert len(held) >= 30
    assert statistics.mean(abs(error) for _, error in held) < 0.05
    assert {name for name, error in held if abs(error) > 0.10} == set(MISSED)
    assert max(abs(error) for _, error in held) < 0.15
    met = {name.split(" on ")[0] for name, error in held if abs(error) <= 0.10}
    assert {"mixtral-8x7b", "mixtral-8x22b", "llama3.1-405b"} <= met


def test_few_runs_were_fitted_to():
    fit = errors()["fit"]
    assert len(fit) <= 12 and max(abs(error) for name, error in fit if ":" in name and "h100" not in name) < 0.05
    assert max(abs(error) for _, error in fit) < 0.10


def test_published_runs_on_gpus_that_were_held_out_are_met():
    """8 % in the mean and 15 % at most: the runs are of four machines and three years."""
    held = [abs(error) for name, error in errors()["held"] if re.search("[abh][12]00:", name)]
    assert len(held) >= 8 and statistics.mean(held) < 0.08 and max(held) < 0.15
