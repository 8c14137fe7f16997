"""Plans of stages of tuning: the memory of a frozen base, 4 FLOPs a parameter, keys of the stage, one GPU."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tpullm.cli import main
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import planned_mesh
from tpullm.planning.economics import estimate
from tpullm.planning.memory import resting
from tpullm.planning.plan_tables import details, side_by_side
from tpullm.planning.plans import make_plan, to_json
from tpullm.planning.program import stage_named, stage_of
from tpullm.planning.proof import job_of, program_hash
from tpullm.planning.setting import setting_of
from tpullm.planning.step_work import useful_flops, work
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import AdapterConfig, PolicyConfig, PreferenceConfig, TeacherConfig, TuningConfig
from tpullm.system.errors import UserError

EIGHT = load(ROOT / "configs" / "tune" / "8b-qlora.yaml")
MODEL = EIGHT.model.resolved(EIGHT.tokenizer.vocabulary_size)


def plan(name, topology, **options):
    recipe = load(ROOT / "configs" / "tune" / f"{name}.yaml")
    return make_plan(recipe, recipe.model.resolved(recipe.tokenizer.vocabulary_size), topology, **options)


def test_a_stage_is_named_by_the_user_or_is_the_first_that_trains():
    pretrains = load(ROOT / "configs" / "tune" / "law.yaml")
    assert stage_of(pretrains).name == "pretrain" and stage_of(pretrains, "field").key == "finetune.field.train"
    assert stage_of(pretrains, "field").adapter is None
    assert stage_of(EIGHT).name == stage_named(stage_of(EIGHT).key) == "chat"
    assert stage_of(EIGHT).adapter.quantize_base == "nf4" and stage_of(EIGHT, "pretrain").adapter is None
    with pytest.raises(UserError, match="no stage char; it has pretrain, chat"):
        stage_of(EIGHT, "char")
    other = dataclasses.replace(stage_of(EIGHT).config, steps=7)
    assert stage_of(stage_of(EIGHT).changed(EIGHT, other)).config == other


def test_lora_and_qlora_of_8b_fit_one_chip_and_one_card_and_tuning_all_of_it_does_not():
    """The base in 16 bits takes 2 bytes a parameter, in nf4 0.56, and its tables 2."""
    for topology in ("v6e:1x1", "h100:1"):
        plain, packed = plan("8b-lora", topology), plan("8b-qlora", topology)
        assert plain.fits and packed.fits
        frozen = [one.chosen.memory.kinds["frozen parameters"] for one in (plain, packed)]
        tables = 2 * 2 * 128256 * 4096
        assert frozen[0] == pytest.approx(2 * 8.03e9, rel=1e-3)
        assert frozen[1] - tables == pytest.approx(9 / 16 * (8.03e9 - tables / 2), rel=1e-3)
        assert not plan("8b-lora", topology, stage="pretrain").fits
    assert plan("70b-qlora", "v6e:2x2").fits and not plan("70b-qlora", "v6e:1x1").fits


@pytest.mark.parametrize("domain", ["law", "medicine", "programming"])
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


def test_the_state_is_that_of_the_arrays():
    adapter = AdapterConfig(rank=4, quantize_base="nf4")
    rests, architecture = resting(MODEL, EIGHT.pretrain.optimizer, adapter), Architecture(MODEL, adapter)
    trained = architecture.trained(architecture.shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained))
    # With two moments, all float32, and a kilobyte of what decides which steps are skipped.
    assert rests.total() == pytest.approx(3 * 4 * parameters, rel=1e-4)
    at_rest = architecture.frozen(architecture.at_rest(planned_mesh({}, 1), jnp.dtype("bfloat16")))
    assert sum(size for _, size in rests.frozen) == sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(at_rest)
    )


def test_a_frozen_matrix_is_multiplied_twice_and_not_three_times():
    stage, slice_ = stage_of(EIGHT), parse("v6e:1x1")
    packed = setting_of(MODEL, stage.config, EIGHT.mesh, slice_, adapter=stage.adapter, key=stage.key)
    whole = setting_of(MODEL, stage.config, EIGHT.mesh, slice_)
    mine, all_of_it = work(packed), work(whole)
    assert mine["feed-forward"].flops == pytest.approx(2 / 3 * all_of_it["feed-forward"].flops)
    assert mine["loss"].flops == pytest.approx(2 / 3 * all_of_it["loss"].flops)
    assert mine["adapter"].flops < 0.05 * mine["feed-forward"].flops
    assert 0.6 < useful_flops(packed) / useful_flops(whole) < 0.75  # attention's scores cost as much as ever
    plain = dataclasses.replace(packed, adapter=dataclasses.replace(packed.adapter, quantize_base=""))
    assert estimate(plain).step_seconds < min(estimate(of).step_seconds for of in (packed, whole))


def test_advice_and_a_search_name_the_keys_of_the_stage():
    rows = dataclasses.replace(stage_of(EIGHT).config, batch_size=64, accumulation=1)
    large = stage_of(EIGHT).changed(EIGHT, rows)
    refused = make_plan(large, MODEL, "v6e:1x1")
    assert not refused.fits and refused.advice.change.startswith("finetune.chat.train.accumulation: ")
    found = make_plan(large, MODEL, "v6e:1x1", searched=True)
    assert found.fits and found.recipe.pretrain == large.pretrain
    assert stage_of(found.recipe).config.accumulation == found.chosen.setting.accumulation > 1
    assert "finetune.chat.train.accumulation" in found.chosen.keys()


def test_the_compiled_step_is_that_of_the_stage():
    """Without compiling: the traced programs differ by what is trained, and by the type of the base."""
    small = load(ROOT / "configs" / "tune" / "8b-qlora.yaml", ["--model.layers=1", "--tokenizer.vocabulary_size=512"])
    versions, slice_ = {"jax": "0"}, parse("v6e:1x1")
    job = job_of(small, slice_)
    assert (job.adapter.quantize_base, job.key, job.config.batch_size) == ("nf4", "finetune.chat.train", 8)
    others = [dataclasses.replace(job, adapter=of) for of in (None, dataclasses.replace(job.adapter, quantize_base=""))]
    assert len({program_hash(one, versions) for one in (job, *others)}) == 3


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
    made = make_plan(recipe, MODEL, "v6e:2x2", stage="mine")
    shown = details(made), side_by_side([made, made])
    assert to_json(made)["uncounted"] == list(found)
    assert all(("NOT COUNTED" in text) == bool(told) and all(what in text for what in found) for text in shown)


def test_a_base_is_planned_before_it_is_imported(tmp_path, capsys):
    """Of a published model `config.json` is enough."""
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
    recipe.write_text(f"base: {tmp_path / 'published'}\nfinetune: {{chat: {stage}}}\n", encoding="utf-8")
    assert main.main(["plan", str(recipe), "--run", str(tmp_path / "run"), "--topology=v6e:1x1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert "finetune.chat.train.accumulation" in found["keys"]
    parameters = 2 * 512 * 256 + 2 * (256 * 256 * 3 + 3 * 256 * 512)
    assert found["memory"]["frozen parameters"] == pytest.approx(2 * parameters, rel=0.01)
