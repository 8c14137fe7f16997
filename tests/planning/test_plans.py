"""Plans: the order of proofs, slices, plain values; and stages of tuning, with a frozen base and keys of their own."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.planning.by_hand import setting, shipped
from tpullm.cli import main
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import planned_mesh
from tpullm.planning.economics import estimate_step
from tpullm.planning.memory import global_state
from tpullm.planning.plan_tables import plan_details, plans_side_by_side
from tpullm.planning.plans import VERSION, Plan, make_plan, on_slices, to_json, with_proofs
from tpullm.planning.program import job_of, stage_of
from tpullm.planning.proof import program_hash
from tpullm.planning.search import assess_memory
from tpullm.planning.step_work import step_parts, useful_flops
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import AdapterConfig, PolicyConfig, PreferenceConfig, TeacherConfig, TuningConfig
from tpullm.run import pypi
from tpullm.system.errors import UserError

SMALL = ["--model.layers=2", "--pretrain.batch_size=64", "--pretrain.accumulation=1"]
RECIPE = load(ROOT / "configs" / "pretrain" / "125m.yaml", SMALL)
MODEL = RECIPE.model.resolved(RECIPE.tokenizer.vocabulary_size)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(RECIPE, MODEL, "v5e:4x4", ["v5e=3"], 24.0)


def proof(**fields):
    return SimpleNamespace(**{"refused": "", "step_seconds": 1.0} | fields)


def test_a_plan_is_of_the_recipe_as_it_is_and_in_plain_values(plan):
    assert plan.recipe.pretrain == RECIPE.pretrain and plan.recipe.topology == "v5e:4x4" and plan.found is None
    assert plan.run.dollars == {"given": pytest.approx(plan.run.days * 24 * 16 * 3, abs=0.01)}
    assert plan.dollars == plan.run.dollars["given"] and plan.run.hours_between == 24
    assert dataclasses.replace(plan, run=dataclasses.replace(plan.run, dollars={})).dollars == 0
    assert plan.fits and plan.advice is None and plan.proofs == ()
    assert plan.run.checkpoint_bytes == global_state(MODEL, RECIPE.pretrain.optimizer).total()
    assert plan.run.step_seconds == plan.chosen.estimate.step_seconds
    values = to_json(plan)
    found = plan.chosen.estimate
    assert (values["topology"], values["chips"], values["fits"]) == ("v5e:4x4", 16, True)
    assert values["limit_bytes"] == round(15.75 * 2**30) and values["peak_bytes"] == round(plan.chosen.memory.peak)
    assert values["mfu"] == found.mfu and values["exposed_seconds"] == found.exposed
    assert values["search"] is None and values["advice"] is None and values["proofs"] == []
    small = setting(fsdp=16, chip={"hbm_bytes": 1})
    none = dataclasses.replace(plan, chosen=assess_memory(small))
    assert to_json(none)["step_seconds"] == estimate_step(small).step_seconds  # also of what does not fit
    assert VERSION == 1


def test_a_searched_plan_is_the_best_way(plan):
    found = make_plan(RECIPE, MODEL, "v5e:4x4", searched=True)
    assert found.chosen is found.found.best[0] and found.run.step_seconds <= plan.run.step_seconds
    values = to_json(found)
    assert values["search"]["best"][0]["behind"] == "" != values["search"]["best"][1]["behind"]
    one = found.found.best[1]
    assert values["search"]["best"][1]["waiting_seconds"] == sum(one.estimate.exposed.values())
    assert values["search"]["screened"] == found.found.screened >= values["search"]["fitting"] > 0


def test_a_search_begins_also_where_the_recipes_own_mesh_does_not_hold_the_batch():
    """8 rows on 16 chips, all along fsdp; and a mesh for 32 chips. What fits no mesh is refused as it was."""
    few = load(ROOT / "configs" / "pretrain" / "125m.yaml", [*SMALL[:1], "--pretrain.batch_size=8"])
    other = dataclasses.replace(RECIPE, mesh={"fsdp": 32})
    for recipe, message in ((few, "can't be shared by 16 devices"), (other, "needs 32 and does not fit 16")):
        with pytest.raises(UserError, match=message):
            make_plan(recipe, MODEL, "v5e:4x4")
        found = make_plan(recipe, MODEL, "v5e:4x4", searched=True)
        assert found.fits and found.chosen is found.found.best[0]
        make_plan(found.recipe, MODEL, "v5e:4x4")  # what it found is a recipe that fits
    none = load(ROOT / "configs" / "pretrain" / "125m.yaml", ["--pretrain.batch_size=7", "--pretrain.accumulation=1"])
    with pytest.raises(UserError, match="7 rows .* can't be shared by 16 devices along mesh.fsdp"):
        make_plan(none, MODEL, "v5e:4x4", searched=True)


def test_the_fastest_that_the_compiler_lets_fit_is_chosen(plan):
    settings = (dataclasses.replace(plan.chosen.setting, accumulation=parts) for parts in (1, 2, 1))
    one, two, three = map(assess_memory, settings)
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


EIGHT = load(ROOT / "configs" / "tune" / "8b-qlora.yaml")
MODEL_8B = EIGHT.model.resolved(EIGHT.tokenizer.vocabulary_size)


def tuned(name, topology, **options):
    recipe = load(ROOT / "configs" / "tune" / f"{name}.yaml")
    return make_plan(recipe, recipe.model.resolved(recipe.tokenizer.vocabulary_size), topology, **options)


def test_a_stage_is_named_by_the_user_or_is_the_first_that_trains():
    pretrains = load(ROOT / "configs" / "tune" / "licences.yaml")
    assert stage_of(pretrains).name == "pretrain" and stage_of(pretrains, "field").key == "finetune.field.train"
    assert stage_of(pretrains, "field").adapter is None
    assert stage_of(EIGHT).name == stage_of(EIGHT, "finetune.chat.train").name == "chat"
    assert stage_of(EIGHT).adapter.quantize_base == "nf4" and stage_of(EIGHT, "pretrain").adapter is None
    with pytest.raises(UserError, match="no stage char; it has pretrain, chat"):
        stage_of(EIGHT, "char")
    job = job_of(EIGHT, parse("v6e:1x1"))
    assert (job.adapter.quantize_base, job.key, job.config) == ("nf4", stage_of(EIGHT).key, stage_of(EIGHT).config)
    other = dataclasses.replace(stage_of(EIGHT).config, steps=7)
    assert stage_of(stage_of(EIGHT).changed(EIGHT, other)).config == other


def test_lora_and_qlora_of_8b_fit_one_chip_and_one_card_and_tuning_all_of_it_does_not():
    """The base in 16 bits takes 2 bytes a parameter, in nf4 0.56, and its tables 2."""
    for topology in ("v6e:1x1", "h100:1"):
        plain, packed = tuned("8b-lora", topology), tuned("8b-qlora", topology)
        assert plain.fits and packed.fits
        frozen = [one.chosen.memory.kinds["frozen parameters"] for one in (plain, packed)]
        tables = 2 * 2 * 128256 * 4096
        assert frozen[0] == pytest.approx(2 * 8.03e9, rel=1e-3)
        assert frozen[1] - tables == pytest.approx(9 / 16 * (8.03e9 - tables / 2), rel=1e-3)
        assert not tuned("8b-lora", topology, stage="pretrain").fits
    assert tuned("70b-qlora", "v6e:2x2").fits and not tuned("70b-qlora", "v6e:1x1").fits


@pytest.mark.parametrize("domain", ["law-ja", "medicine", "programming"])
def test_a_domain_for_a_published_model_needs_what_its_recipe_says(domain):
    """Of the shapes of Qwen3 1.7 B and 8 B. The time is that of the steps of both stages."""
    recipe = load(ROOT / "configs" / "tune" / f"{domain}-8b.yaml")
    head = (ROOT / "configs" / "tune" / f"{domain}-8b.yaml").read_text("utf-8").partition("\nname:")[0]
    qwen = {"vocabulary_size": 151936, "kv_heads": 8, "head_width": 128, "qk_norm": "head"}
    small = {"layers": 28, "width": 2048, "heads": 16, "mlp_width": 6144, "tied_embeddings": True}
    large = {"layers": 36, "width": 4096, "heads": 32, "mlp_width": 12288, "tied_embeddings": False}
    figures = []
    for shape, topology in ((small, "v6e:1x1"), (large, "v6e:1x1"), (large, "h100:1")):
        model = dataclasses.replace(recipe.model, **qwen, **shape, context_length=4096)
        plans = [make_plan(recipe, model, topology, stage=stage) for stage in recipe.finetune]
        assert all(plan.fits for plan in plans)
        steps = [recipe.finetune[stage].train.steps for stage in recipe.finetune]
        each = [plan.chosen.estimate.step_seconds for plan in plans]
        figures.append((np.dot(steps, each) / 60, max(plan.chosen.memory.peak for plan in plans) / 2**30))
    (small_minutes, small_gib), (large_minutes, large_gib), (card_minutes, _) = figures
    time = f"{small_minutes:.2g} minutes of steps for 1.7 B and {large_minutes:.2g} for 8 B on v6e:1x1; "
    assert time + f"{card_minutes:.2g} for 8 B on h100:1" in head
    assert f"{small_gib:.1f} GiB a chip for 1.7 B, {large_gib:.1f} for 8 B" in head


def test_the_state_is_that_of_the_arrays_and_a_frozen_matrix_is_multiplied_twice():
    adapter = AdapterConfig(rank=4, quantize_base="nf4")
    rests, architecture = global_state(MODEL_8B, EIGHT.pretrain.optimizer, adapter), Architecture(MODEL_8B, adapter)
    trained = architecture.trained(architecture.shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained))
    # With two moments, all float32, and a kilobyte of what decides which steps are skipped.
    assert rests.total() == pytest.approx(3 * 4 * parameters, rel=1e-4)
    at_rest = architecture.frozen(architecture.at_rest(planned_mesh({}, 1), jnp.dtype("bfloat16")))
    frozen = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(at_rest))
    assert sum(size for _, size in rests.frozen) == frozen
    packed = shipped("8b-qlora", "v6e:1x1")
    whole = dataclasses.replace(packed, adapter=None)
    mine, all_of_it = step_parts(packed), step_parts(whole)
    assert mine["feed-forward"].flops == pytest.approx(2 / 3 * all_of_it["feed-forward"].flops)
    assert mine["loss"].flops == pytest.approx(2 / 3 * all_of_it["loss"].flops)
    assert mine["adapter"].flops < 0.05 * mine["feed-forward"].flops
    assert 0.6 < useful_flops(packed) / useful_flops(whole) < 0.75  # attention's scores cost as much as ever
    plain = dataclasses.replace(packed, adapter=dataclasses.replace(packed.adapter, quantize_base=""))
    assert estimate_step(plain).step_seconds < min(estimate_step(of).step_seconds for of in (packed, whole))


def test_advice_and_a_search_name_the_keys_of_the_stage():
    rows = dataclasses.replace(stage_of(EIGHT).config, batch_size=64, accumulation=1)
    large = stage_of(EIGHT).changed(EIGHT, rows)
    refused = make_plan(large, MODEL_8B, "v6e:1x1")
    assert not refused.fits and refused.advice.change.startswith("finetune.chat.train.accumulation: ")
    found = make_plan(large, MODEL_8B, "v6e:1x1", searched=True)
    assert found.fits and found.recipe.pretrain == large.pretrain
    assert stage_of(found.recipe).config.accumulation == found.chosen.setting.accumulation > 1
    assert "finetune.chat.train.accumulation" in found.chosen.keys()


@pytest.mark.ci
def test_the_compiled_step_is_that_of_the_stage():
    small = load(ROOT / "configs" / "tune" / "8b-qlora.yaml", ["--model.layers=1", "--tokenizer.vocabulary_size=512"])
    job = job_of(small, parse("v6e:1x1"))
    other = dataclasses.replace(job, adapter=dataclasses.replace(job.adapter, quantize_base=""))
    assert program_hash(job, {}) != program_hash(other, {})


@pytest.mark.parametrize(
    "keys, told",
    [
        ({}, []),
        ({"conversations": ["a"], "documents": {"old": 0.1}}, []),  # rows of the step, which are counted
        ({"documents": {"old": 1.0}, "teacher": {"model": "big"}}, ["the teacher big, its .* before the first step"]),
        (
            {"prompts": ["a"], "policy": {"prompts": 4, "answers": 6, "tokens": 77, "kl_weight": 0.1}},
            ["sampling 24 answers of 77 tokens", r"without its adapter .*kl_weight"],
        ),
        (
            {"prompts": ["a"], "teacher": {"model": "big"}, "documents": {"old": 0.1}},
            ["sampling 64 answers", "the teacher big, .* in each step", r"old text .*\(old\)"],
        ),
        ({"preferences": ["a"]}, ["the stage before over all rows, once"]),
        ({"judged": ["a"], "preference": {"kind": "kto"}}, ["the stage before over all rows, once"]),
        ({"preferences": ["a"], "preference": {"kind": "orpo"}}, []),
    ],
)
def test_what_a_plan_leaves_out_is_said(keys, told):
    sections = {"policy": PolicyConfig, "preference": PreferenceConfig, "teacher": TeacherConfig}
    made = {name: sections[name](**of) if name in sections else of for name, of in keys.items()}
    stage = TuningConfig(**made, adapter=AdapterConfig(rank=4))
    recipe = dataclasses.replace(EIGHT, finetune={"mine": stage})
    found = stage_of(recipe, "mine").uncounted
    assert len(found) == len(told) and all(re.search(*pair) for pair in zip(told, found, strict=True)), found
    made = make_plan(recipe, MODEL_8B, "v6e:2x2", stage="mine")
    shown = plan_details(made), plans_side_by_side([made, made])
    assert to_json(made)["uncounted"] == list(found)
    assert all(("NOT COUNTED" in text) == bool(told) and all(what in text for what in found) for text in shown)


@pytest.mark.parametrize("base", ["published", "pypi:tiny==1.0"])
def test_a_base_is_planned_before_it_is_imported(tmp_path, capsys, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pypi, "fetch", lambda base: tmp_path / "published")  # where a file would be
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "hidden_act": "silu", "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    recipe = tmp_path / "mine.yaml"
    stage = "{conversations: [a.jsonl], adapter: {rank: 4}, train: {sequence_length: 256}}"
    recipe.write_text(f"base: {base}\nfinetune: {{chat: {stage}}}\n", encoding="utf-8")
    assert main.main(["plan", str(recipe), "--run", str(tmp_path / "run"), "--topology=v6e:1x1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert "finetune.chat.train.accumulation" in found["keys"]
    parameters = 2 * 512 * 256 + 2 * (256 * 256 * 3 + 3 * 256 * 512)
    assert found["memory"]["frozen parameters"] == pytest.approx(2 * parameters, rel=0.01)
