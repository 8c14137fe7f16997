"""The proofs of the shipped recipes: what is recorded, what is stale, what the recipes' heads say."""

import dataclasses

import plan_all
import pytest

from tests.conftest import ROOT
from tests.gpu_compiler import missing
from tests.shipped_recipes import for_accelerators
from tpullm.hardware.topologies import parse
from tpullm.planning.program import job_of, stage_of
from tpullm.planning.proof import Proof, Traffic, program_hash
from tpullm.recipe import shipped
from tpullm.recipe.parsing import load

RECIPE = ROOT / "configs" / "pretrain" / "125m.yaml"
PROVEN = plan_all.recorded(plan_all.RESULTS / "plan.json")
VERSIONS = {"jax": "1", "libtpu": "2"}
PROOF = Proof(
    recipe="125m",
    topology="v5e:2x2",
    mesh={"fsdp": 4},
    program="0",
    versions=VERSIONS,
    date="2026-01-02T03:04:05",
    refused="",
    limit_bytes=16 << 30,
    peak_bytes=8 << 30,
    evaluation_bytes=5 << 30,
    state_bytes=1 << 30,
    tokens=1 << 20,
    step_seconds=2.0,
    seconds={"loss": 2.0},
    traffic=(Traffic("fsdp", "all-gather", 5, 0.3, 0.1),),
    findings=(),
    compile_seconds=60.0,
)


@pytest.mark.ci
def test_a_proof_is_stale_when_todays_code_makes_another_program():
    recipe = load(RECIPE)
    assert plan_all.is_stale(recipe, PROOF)
    program = program_hash(job_of(recipe, parse("v5e:2x2")), VERSIONS)
    assert not plan_all.is_stale(recipe, dataclasses.replace(PROOF, program=program))


def test_the_table_says_what_is_stale_what_is_refused_and_what_is_missing():
    recipe = load(RECIPE)
    beside = plan_all.estimated(recipe)
    estimated = f"{beside.memory.peak / 2**30:.1f} | 5.0 | 2.00 | {beside.estimate.step_seconds:.2f}"
    fresh = plan_all.page({"125m": recipe, "1b": recipe}, {"125m": PROOF}, set())
    assert f"| 125m | v5e:2x2 | 8.0 of 16.0 | {estimated} | 131,072 | 5.0% | 0 2026-01-02, libtpu 2 |" in fresh
    assert "| 1b | not proven |" in fresh
    assert "**older than the code**" in plan_all.page({"125m": recipe}, {"125m": PROOF}, {"125m"})
    refused = dataclasses.replace(PROOF, refused="does not fit: so", step_seconds=0.0)
    assert "| does not fit |" in plan_all.row(refused, False, beside) and "so" in plan_all.findings(refused)


def test_the_head_of_a_recipe_quotes_its_proof(tmp_path):
    path = tmp_path / "125m.yaml"
    path.write_text(RECIPE.read_text())
    plan_all.write_header(path, PROOF)
    assert "8.0 GiB of 16 a chip, 131,072 tokens/s a chip expected" in path.read_text()
    assert "#   time      2.8 hours expected\n" in path.read_text(), "5,000 steps of 2 s"
    assert load(path) == load(RECIPE)


@pytest.mark.parametrize("name", PROVEN)
def test_every_shipped_recipe_says_what_is_recorded(name):
    path = plan_all.RECIPES[name]
    head = shipped.head(path)
    assert head["result"] == plan_all.result(PROVEN[name])
    assert head["time"] == plan_all.duration(PROVEN[name], stage_of(load(path)).config.steps)


@pytest.mark.parametrize("name", [name for name, proof in PROVEN.items() if parse(proof.topology).chip.gpu])
def test_the_estimate_of_a_recipe_for_gpus_is_the_compilers_memory(name):
    """8 %, as of all programs for GPUs in `compiled.yaml`."""
    estimated = plan_all.estimated(load(plan_all.RECIPES[name])).memory.peak
    assert estimated == pytest.approx(PROVEN[name].peak_bytes, rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in for_accelerators()])
def test_every_shipped_recipe_compiles_for_its_topology_and_fits(name):
    """One to three minutes each, if it is not kept from an earlier run."""
    recipe = load(plan_all.RECIPES[name])
    if why := missing(recipe.topology):
        pytest.skip(why)
    (proof,) = plan_all.proven({name: recipe}).values()
    assert not proof.refused and proof.peak_bytes <= proof.limit_bytes
