"""A training that starts from a checkpoint of another one."""

import dataclasses
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.conftest import copy_tokens
from tests.run.test_resume import assert_same_bits
from tests.training import several_hosts
from tests.training.small import mesh
from tpullm.cli.main import main
from tpullm.data.stream import pretraining_stream
from tpullm.formats.models import find, load_params, steps
from tpullm.model.architecture import Architecture
from tpullm.recipe.parsing import load
from tpullm.system.errors import UserError
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training import resume
from tpullm.training.losses import Sums
from tpullm.training.metrics import read_rows
from tpullm.training.step import batch_loss

SHORT = ["--pretrain.log_every=1", "--pretrain.evaluate_every=0", "--pretrain.checkpoint.every_steps=0"]
WSD = [*SHORT, "--pretrain.optimizer.schedule=wsd", "--pretrain.optimizer.decay_fraction=0.3", "--pretrain.steps=10"]


@pytest.fixture(scope="module")
def origin(tiny_run, tmp_path_factory):
    """A training of 10 steps; the checkpoint at step 7, where its decay begins, stays."""
    run = copy_tokens(tiny_run, tmp_path_factory.mktemp("runs") / "origin")
    assert main(["pretrain", "--run", str(run), *WSD]) == 0
    assert steps(run / "pretrain" / "checkpoints") == [7, 10]
    return run


@pytest.fixture
def run(tiny_run, tmp_path):
    return copy_tokens(tiny_run, tmp_path / "branch")


def pretrain(run, origin, *options, step=7):
    return main(["pretrain", "--run", str(run), *WSD, f"--branch={origin}/pretrain/checkpoints/{step}", *options])


def rows(run):
    return read_rows(run / "pretrain" / "metrics.jsonl")


def losses(run):
    """The loss of every step in the log."""
    return {row["step"]: row["loss"] for row in rows(run) if "loss" in row}


@pytest.mark.ci
def test_with_the_whole_state_and_the_same_settings_it_has_the_same_bits(origin, run, tmp_path, capsys):
    shutil.copytree(origin, tmp_path / "origin")
    assert pretrain(run, tmp_path / "origin") == 0
    assert "step 7 of 10" in capsys.readouterr().err
    assert_same_bits(origin / "pretrain", run / "pretrain")
    whole = losses(origin)
    assert losses(run) == {step: whole[step] for step in (8, 9, 10)}
    assert find(run / "pretrain").horizons == [[7, 10]]
    # What it came from is part of what it is, and may be gone.
    shutil.rmtree(tmp_path / "origin")
    assert pretrain(run, tmp_path / "origin") == 0
    assert "finished, skipped" in capsys.readouterr().err
    assert pretrain(run, origin, "--branch_state=parameters") == 0
    assert "made again" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("hosts, mesh", [(2, "{fsdp: 4}"), (4, "{fsdp: 2, sequence: 4}"), (4, "{fsdp: 2, tensor: 2}")])
def test_several_hosts_branch(origin, run, tmp_path, tiny_run, hosts, mesh):
    """As one device: 1e-5 is some float32 roundings in three steps. Of four hosts two split a row, or its heads."""
    command = ("tpullm", "pretrain", *WSD, f"--branch={origin}/pretrain/checkpoints/7", f"--mesh={mesh}")
    devices = 8 if "sequence" in mesh else 4
    several_hosts.run(hosts, *command, "--run", run, devices=devices)
    for step in (8, 9, 10):
        assert losses(run)[step] == pytest.approx(losses(origin)[step], rel=1e-5)
    held_out = [rows(stage)[-1]["eval_loss"] for stage in (run, origin)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)
    grown, options = copy_tokens(tiny_run, tmp_path / "grown"), ["--pretrain.steps=1", "--model.vocabulary_size=704"]
    several_hosts.run(hosts, *command, "--run", grown, "--branch_state=parameters", *options, devices=devices)
    before = first_loss(grown, origin)
    assert before < losses(grown)[1] < before + math.log(1 + 64 / 640) + 1e-5


@pytest.mark.ci
def test_with_the_parameters_alone_it_starts_at_step_0(origin, run):
    """The loss of its first step is that of the checkpoint on the first batch."""
    assert pretrain(run, origin, "--branch_state=parameters") == 0
    assert sorted(losses(run)) == [*range(1, 11)]
    assert losses(run)[1] == pytest.approx(first_loss(run, origin), rel=1e-5)  # float32: sums in another order
    assert losses(run)[1] < losses(origin)[1] - 0.1


def first_loss(run, origin):
    """The loss of the checkpoint of step 7 on the first batch of a run."""
    model = find(origin / "pretrain" / "checkpoints" / "7")
    architecture = Architecture(model.config)
    batch = pretraining_stream(load(run / "recipe.yaml"), run, np.arange(8)).batch_at(0)
    with jax.set_mesh(mesh()):
        params = load_params(model, architecture.placed(mesh()))
        sums: Sums = batch_loss(architecture, params, batch, dtype=np.dtype("float32"))[1]
    return float(sums.loss / sums.weight)


@pytest.mark.ci
def test_a_grown_vocabulary_costs_no_more_than_the_mean_probability_of_a_token(origin, run):
    """60 rows more, of no token: their probability is taken from the 640 that there were."""
    options = ["--branch_state=parameters", "--model.vocabulary_size=700", "--pretrain.steps=1"]
    assert pretrain(run, origin, *options) == 0
    before = first_loss(run, origin)
    assert before < losses(run)[1] < before + math.log(1 + 60 / 640) + 1e-5


def tokenizer(*pieces):
    bytes_of = lambda token: pieces[token].encode() * (pieces[token][0] != "<")  # noqa: E731
    return SimpleNamespace(vocabulary_size=len(pieces), piece=pieces.__getitem__, bytes_of=bytes_of)


def test_rows_go_where_their_tokens_went():
    old, new = tokenizer("<s>", "a", "b", "ab"), tokenizer("<s>", "b", "c", "ab", "a")
    assert resume.embedding_row_sources(old, new, 4, 5).tolist() == [0, 2, -1, 3, 1]
    assert resume.embedding_row_sources(old, new, 6, 8).tolist() == [0, 2, -1, 3, 1, 5, -1, -1], "padding stays"
    assert resume.embedding_row_sources(old, old, 6, 6).tolist() == [0, 1, 2, 3, 4, 5]
    leaf = np.arange(8, dtype=np.float32).reshape(4, 2)
    grown = resume.reordered_rows(leaf, np.array([3, -1, 0]), 2, 0)
    assert grown.tolist() == [[6, 7], [1, 2], [0, 1]]
    assert (resume.reordered_rows(leaf.T, np.array([3, -1, 0]), 2, 1) == grown.T).all()


@pytest.mark.parametrize(
    ("step", "options", "says"),
    [
        (8, [], "branch: no such checkpoint"),
        ("last", [], "is no checkpoint; name one, such as RUN/pretrain/checkpoints/700"),
        (25, ["--pretrain.steps=25"], "has done 25; set more, or branch_state to parameters"),
        (25, ["--model.width=64"], "model.width: the checkpoint"),
        (25, ["--model.width=64", "--branch_state=parameters"], "model.width: the checkpoint"),
        (25, ["--pretrain.optimizer.kind=muon"], "has the state of adamw, the recipe says muon"),
        (25, ["--pretrain.optimizer.moments=bfloat16"], "has the state of float32, the recipe says bfloat16"),
        (25, ["--model.vocabulary_size=700"], "model.vocabulary_size: the checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tiny_run, run, capsys, step, options, says):
    assert main(["pretrain", f"--run={run}", f"--branch={tiny_run}/pretrain/checkpoints/{step}", *options]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (run / "pretrain").exists()


def test_a_corrupt_checkpoint_and_another_tokenizer_are_refused(tiny_run, run, tmp_path, capsys, monkeypatch):
    """Another one may have the same tokens under other ids."""
    shutil.copytree(tiny_run / "pretrain", tmp_path / "origin")
    (tmp_path / "origin" / "checkpoints" / "25" / "state" / "_METADATA").unlink()
    assert main(["pretrain", f"--run={run}", f"--branch={tmp_path}/origin/checkpoints/25"]) == 2
    assert "the checkpoint is corrupt (state/_METADATA is missing)" in capsys.readouterr().err
    own, model = load_tokenizer(tiny_run / "tokenizer"), find(tiny_run / "pretrain" / "checkpoints" / "25")
    recipe = dataclasses.replace(load(run / "recipe.yaml"), branch=str(model.directory / "25"))
    longer, wider = (
        dataclasses.replace(recipe, pretrain=dataclasses.replace(recipe.pretrain, **other))
        for other in ({"steps": 99}, {"batch_size": 16})
    )
    reseeded = dataclasses.replace(recipe, seed=recipe.seed + 1)
    for one, differs in ((recipe, False), (longer, False), (wider, True), (reseeded, True)):
        assert resume.pretraining_origin(one, own, model.config) == (model, differs)
    swapped, other = [*range(638), 639, 638], tokenizer(*(f"p{number}" for number in range(640)))
    same_tokens = tokenizer(*map(own.piece, swapped))
    same_tokens.bytes_of = list(map(own.bytes_of, swapped)).__getitem__
    for another in (other, same_tokens):
        with pytest.raises(UserError, match="another tokenizer; set branch_state to parameters"):
            resume.pretraining_origin(recipe, another, model.config)
    monkeypatch.setattr(resume, "described", lambda *place: dataclasses.replace(model, stage="base"))
    with pytest.raises(UserError, match="has parameters alone; set branch_state to parameters"):
        resume.pretraining_origin(recipe, own, model.config)
