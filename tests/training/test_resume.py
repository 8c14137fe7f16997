"""A training whose recipe has changed resumes where it can, and says where it can't: `training/resume.py`."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.run.test_resume import assert_same_bits, final_parameters
from tpullm.cli.main import main
from tpullm.formats.models import find, steps
from tpullm.training import resume
from tpullm.training.metrics import read_rows

SHORT = ["--pretrain.log_every=1", "--pretrain.evaluate_every=0", "--pretrain.checkpoint.every_steps=0"]
WSD = [*SHORT, "--pretrain.optimizer.schedule=wsd", "--pretrain.optimizer.decay_fraction=0.3"]


def pretrain(run, *options):
    assert main(["pretrain", "--run", str(run), *options]) == 0


@pytest.fixture
def interrupted(tiny_run, tiny_tokens):
    """A run whose pretraining was stopped after step 25 of 30."""
    stage = tiny_tokens / "pretrain"
    shutil.copytree(tiny_run / "pretrain", stage)
    (stage / "manifest.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "30")
    return tiny_tokens


SAME_BITS = ["log_every=2", "evaluate_every=4", "evaluate_rows=2", "data_workers=0", "checkpoint.keep=5"]
SAME_BITS += ["norms_every=2"]  # a program of its own, whose bits are the same on a CPU


@pytest.mark.ci
def test_keys_that_change_nothing_may_change_in_the_middle(tiny_run, interrupted, capsys):
    pretrain(interrupted, *(f"--pretrain.{key}" for key in SAME_BITS))
    assert "step 25 of 30" in capsys.readouterr().err
    assert not (interrupted / "replaced").exists()
    assert_same_bits(tiny_run / "pretrain", interrupted / "pretrain")


ANNEALED = "--mixture.phases=[{start: 0.7, weights: {tenki: 1}}]"  # from where the decay begins


@pytest.mark.parametrize(
    "phases", [pytest.param([], marks=pytest.mark.ci), pytest.param([ANNEALED], marks=pytest.mark.slow)]
)
def test_a_longer_training_by_wsd_is_the_uninterrupted_one(tiny_tokens, tmp_path, capsys, phases):
    """It resumes where the decay began, and what came after is kept as a model."""
    whole, options = tmp_path / "whole", [*WSD, *phases]
    shutil.copytree(tiny_tokens, whole)
    pretrain(whole, *options, "--pretrain.steps=16")
    pretrain(tiny_tokens, *options, "--pretrain.steps=10", "--pretrain.checkpoint.keep=1")
    assert steps(tiny_tokens / "pretrain" / "checkpoints") == [7, 10]
    decayed = final_parameters(tiny_tokens / "pretrain")
    capsys.readouterr()
    pretrain(tiny_tokens, *options, "--pretrain.steps=16")
    assert "resumes at step 7" in capsys.readouterr().err
    assert_same_bits(whole / "pretrain", tiny_tokens / "pretrain")
    rows = read_rows(tiny_tokens / "pretrain" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 17)]
    (kept,) = (tiny_tokens / "replaced").iterdir()
    for before, after in zip(decayed, final_parameters(kept), strict=True):
        assert before.tobytes() == after.tobytes()
    assert find(kept).tokenizer_path.is_dir() and (kept / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("step", "left_out", "same"), [(7, [], True), (8, [], False), (7, [[3, 1]], False), (10, [], False)]
)
def test_a_checkpoint_is_on_the_way_while_no_phase_has_begun_elsewhere(step, left_out, same):
    """Of 10 steps a phase of start 0.7 begins after 7, of 20 after 14."""
    model = SimpleNamespace(step=step, left_out=left_out, horizons=[[0, 10]])
    inputs = {"config": {"mixture": {"phases": [{"start": 0}, {"start": 0.7}]}}}
    assert resume.same_phases(inputs, model, 20) == same
    assert resume.same_phases(inputs, model, 10) and resume.same_phases({"config": {}}, model, 20)


@pytest.mark.ci
def test_a_longer_training_by_cosine_resumes_and_says_what_happens(tiny_tokens, capsys):
    pretrain(tiny_tokens, *SHORT, "--pretrain.steps=8")
    capsys.readouterr()
    pretrain(tiny_tokens, *SHORT, "--pretrain.steps=12")
    said = " ".join(capsys.readouterr().err.split())
    assert "resumes at step 8 of 12, and its learning rate jumps" in said and "with `schedule: wsd` it is" in said
    assert not (tiny_tokens / "replaced").exists()
    assert find(tiny_tokens / "pretrain").horizons == [[0, 8], [8, 12]]
    manifest = json.loads((tiny_tokens / "pretrain" / "manifest.json").read_text())
    assert manifest["inputs"]["length"] == {"steps": 12}


@pytest.mark.ci
def test_a_training_that_has_gone_too_far_is_made_again(tiny_tokens, capsys):
    pretrain(tiny_tokens, *SHORT, "--pretrain.steps=12")
    pretrain(tiny_tokens, *SHORT, "--pretrain.steps=8")  # the programs of the test above
    assert "made again" in capsys.readouterr().err
    (kept,) = (tiny_tokens / "replaced").iterdir()
    assert steps(kept / "checkpoints") == [12] and steps(tiny_tokens / "pretrain" / "checkpoints") == [8]
    assert find(tiny_tokens / "pretrain").horizons == [[0, 8]]
