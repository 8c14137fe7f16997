"""Stages of tuning: each from the one before, with its own data and its own adapter or none."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import yaml

from tests.conftest import TINY
from tpullm.cli.main import main
from tpullm.engine.generation import answer_questions
from tpullm.engine.session import load_session, with_adapter
from tpullm.evaluation import scoring
from tpullm.formats import models
from tpullm.model import quantized
from tpullm.system.errors import UserError
from tpullm.training.metrics import read_rows

STAGES = {
    "field": {"documents": {"python-docs": 0.7, "tenki": 0.3}},
    "answers": {
        "conversations": ["tenki"],
        "documents": {"python-docs": 0.25},
        "adapter": {"rank": 4, "b_learning_rate": 4.0, "quantize_base": "nf4"},
    },
    "style": {"conversations": ["tenki"], "adapter": {"rank": 2, "magnitude": True, "targets": ["query", "up"]}},
}
# As in the tiny run, whose compiled step is that of the stage `field`.
TRAIN = {"steps": 10, "batch_size": 8, "sequence_length": 128, "compute": "float32", "log_every": 1}
TRAIN |= {"optimizer": {"peak_lr": 3e-3, "warmup_steps": 2}, "checkpoint": {"every_steps": 5}}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    whole = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    whole["finetune"] = {name: stage | {"train": TRAIN} for name, stage in STAGES.items()}
    path = tmp_path_factory.mktemp("recipe") / "stages.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pretrained(tiny_run, tmp_path_factory):

    run = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("talk", "evaluate", "report.html"))
    return run


@pytest.fixture(scope="module")
def tuned(recipe, pretrained):

    assert main(["finetune", str(recipe), "--run", str(pretrained)]) == 0
    return pretrained


def arrays(stage, step):
    model = models.described(stage / "checkpoints", step)
    manager = models.reader(model.directory, item_names=("state",))
    state = manager.restore(step, args=models.ocp.args.Composite(state=models.ocp.args.PyTreeRestore()))["state"]
    manager.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.ci
def test_each_stage_starts_where_the_one_before_ended(tuned, tmp_path):
    """Without a learning rate its loss is that of the stage before, in the same rows: of a stage with a quantized base,
    merged parameters are the model that was trained."""
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    before = held_out(run / "answers")
    assert main(["finetune", "--run", str(run), "--finetune.style.train.optimizer.peak_lr=0"]) == 0
    assert held_out(run / "style") == pytest.approx(before, rel=1e-5)  # merged parameters, and DoRA's ratio: roundings
    assert held_out(tuned / "style") != pytest.approx(before, rel=1e-4)
    made = [json.loads((tuned / stage / "manifest.json").read_text())["inputs"]["upstream"] for stage in STAGES]
    assert [set(each) for each in made] == [{"pretrain", "tokens"}, {"field", "tokens"}, {"answers"}]
    model = models.find(tuned / "style")
    assert (model.adapter.rank, model.before[:2]) == (2, ("answers", 10)) and model.base.adapter.rank == 4


def held_out(stage) -> dict[str, float]:
    found = [row["eval_loss"] for row in read_rows(stage / "metrics.jsonl") if "eval_loss" in row][-1]
    assert set(found) - {"conversations"} == {"tenki", "python-docs"}
    return found


@pytest.mark.ci
def test_an_adapter_is_all_that_a_stage_with_one_saves(tuned):
    saved = arrays(tuned / "answers", 10)
    assert all("'adapter'" in name for name in saved if name.startswith("['params']"))
    assert "magnitude" not in "".join(saved) and "mlp" in "".join(saved)
    styled = [name for name in arrays(tuned / "style", 10) if name.startswith("['params']")]
    assert {name.split("'")[7] for name in styled} == {"query", "up"}


@pytest.mark.ci
def test_killed_and_resumed_is_the_same_bits(tuned, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    for stage in STAGES:
        wanted = arrays(run / stage, 10)
        (run / stage / "manifest.json").unlink()
        shutil.rmtree(run / stage / "checkpoints" / "10")
        assert main(["finetune", "--run", str(run)]) == 0
        found = arrays(run / stage, 10)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.ci
def test_beside_and_merged_write_the_same(tuned):
    """Adapters beside one base, which is in memory once. DoRA's decode with all that LoRA's has, so one is enough."""
    base, tokens = load_session(tuned / "field"), np.arange(5, 45, dtype=np.int32)[None]
    beside, merged = with_adapter(base, tuned / "answers"), load_session(tuned / "answers")
    np.testing.assert_allclose(scoring.logits(beside, tokens), scoring.logits(merged, tokens), atol=1e-5)
    own = {id(leaf) for leaf in jax.tree.leaves(base.quantized("nf4").params)}
    assert {id(leaf) for leaf in jax.tree.leaves(beside.architecture.frozen(beside.params))} == own
    assert np.abs(scoring.logits(base, tokens) - scoring.logits(merged, tokens)).max() > 1e-3
    asked, dora = ["本をどうしますか。", "今日は？"], with_adapter(merged, tuned / "style")
    assert answer_questions(dora, asked, tokens=12) == answer_questions(load_session(tuned / "style"), asked, tokens=12)


@pytest.mark.ci
def test_an_adapter_beside_a_base_that_was_opened_in_4_bits(tuned):
    """It is beside the one base in memory; one that was tuned beside other codes is refused."""
    tokens = np.arange(5, 45, dtype=np.int32)[None]
    base = load_session(tuned / "answers", weights="int4")
    with jax.set_mesh(base.mesh):
        change = lambda of: quantized.change_each_matrix(of, lambda matrix, _: quantized.dequantized(matrix))  # noqa: E731
        plain = dataclasses.replace(base, params=jax.jit(change)(base.params), weights="")
    beside, wanted = (with_adapter(of, tuned / "style") for of in (base, plain))
    np.testing.assert_allclose(scoring.logits(beside, tokens), scoring.logits(wanted, tokens), atol=1e-5)
    assert beside.weights == "int4"
    with pytest.raises(UserError, match="--weights int4: .*answers was tuned beside matrices in nf4; leave --weights"):
        with_adapter(load_session(tuned / "field", weights="int4"), tuned / "answers")


@pytest.mark.ci
def test_an_adapter_of_parameters_that_were_made_again_is_refused(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    made = run / "field" / "manifest.json"
    made.write_text(made.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    with pytest.raises(UserError, match="is an adapter of .*field as it was, and that was made again"):
        load_session(run / "answers")
    shutil.rmtree(run / "field")
    with pytest.raises(UserError, match="is an adapter of .*field as it was"):
        load_session(run / "answers")
    with pytest.raises(UserError, match="is an adapter of .*answers, step 10, and of no other model"):
        with_adapter(load_session(tuned / "field"), tuned / "style")
    with pytest.raises(UserError, match="holds a whole model and no adapter"):
        with_adapter(load_session(tuned / "field"), tuned / "pretrain")


@pytest.mark.ci
def test_an_exported_adapter_is_refused_beside_another_model_of_the_same_shape(tuned, tmp_path):
    """Its own base is taken in any type: as it trained, as it writes text, as published in 16 bits."""
    adapter, folder = tmp_path / "adapter", tmp_path / "field"
    assert main(["export", str(tuned / "answers"), str(adapter)]) == 0
    assert main(["export", str(tuned / "field"), str(folder), "--dtype", "float16"]) == 0
    for base, exact in ((tuned / "field", True), (tuned / "field", False), (folder, False)):
        assert with_adapter(load_session(base, exact=exact), adapter).architecture.adapter.rank == 4
    for other in ("pretrain", "answers"):  # the second is its base with the adapter merged into it
        with pytest.raises(UserError, match="is an adapter of another model of the same shape"):
            with_adapter(load_session(tuned / other), adapter)
    (adapter / "base.json").write_text('{"numbers": {"layers.attention.query.weight": [1, "x"]}}')
    with pytest.raises(UserError, match=r"base.json: has no numbers of layers\.attention\.[a-z]+\.weight; export"):
        with_adapter(load_session(tuned / "field"), adapter)
    (adapter / "base.json").unlink()
    assert with_adapter(load_session(tuned / "pretrain"), adapter)


def test_mistakes_are_one_line_and_change_nothing(pretrained, recipe, capsys):
    before = sorted(path.name for path in pretrained.iterdir())
    targets = ("targets=[router]", "this model has no matrix router that can have an adapter")
    for option, said in (targets, ("rank=100", "100 is above the rank of the matrix")):
        option = f"--finetune.answers.adapter.{option}"
        assert main(["finetune", str(recipe), "--run", str(pretrained), option]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in lines[-1] and sorted(path.name for path in pretrained.iterdir()) == before


def test_a_recipe_without_stages_says_what_to_add(tiny_run, tmp_path, capsys):
    plain = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    del plain["finetune"]
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert main(["finetune", str(path), "--run", str(tmp_path / "run")]) == 2
    assert "the recipe has no stage there; add one, such as finetune: {talk:" in capsys.readouterr().err
