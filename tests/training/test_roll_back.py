"""After too many bad steps in a row a training rolls back, with the bits of one that never saw those batches."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from tests.run.test_resume import assert_same_bits
from tpullm.cli.main import main
from tpullm.data.stream import Stream
from tpullm.formats.models import find
from tpullm.recipe.schema import CheckpointConfig, OptimizerConfig, SkipConfig, TrainConfig
from tpullm.system.errors import UserError
from tpullm.training import resume
from tpullm.training.job import RollBack
from tpullm.training.metrics import read_rows
from tpullm.training.resume import Start

KEYS = ["--pretrain.log_every=4", "--pretrain.evaluate_every=0"]  # 30 steps, by the program of the tiny run
PATIENT = ["--pretrain.optimizer.skip.patience=3"]


@pytest.fixture
def poison(monkeypatch):
    """`poison(numbers)`: the batches of these numbers, from 0, have a weight that is not finite."""
    plain = Stream._built

    def poisoned(numbers):
        def built(self, start, stop):
            batches = plain(self, start, stop)
            for step, batch in zip(range(start, stop), batches, strict=True):
                if int(self._numbers(np.array(step))) in numbers:
                    batch.weights[0, 0] = np.nan
            return batches

        monkeypatch.setattr(Stream, "_built", built)

    return poisoned


@pytest.fixture
def never_saw(tiny_tokens, tmp_path, monkeypatch):
    """`never_saw(pairs)`: the stage of a training whose stream never had these batches."""

    def trained(pairs):
        run, without = tmp_path / "never", Stream.without
        shutil.copytree(tiny_tokens, run)
        with monkeypatch.context() as patched:
            patched.setattr(Stream, "without", lambda self, left_out: without(self, pairs))
            assert main(["pretrain", "--run", str(run), *KEYS]) == 0
        return run / "pretrain"

    return trained


def rows(stage):
    return read_rows(stage / "metrics.jsonl")


@pytest.mark.ci
def test_it_leaves_out_the_batches_since_the_last_checkpoint(tiny_tokens, never_saw, poison, capsys):
    """Steps 12 to 14 are bad, step 10 is the last checkpoint before them."""
    reference, stage = never_saw([[10, 4]]), tiny_tokens / "pretrain"
    poison({11, 12, 13})
    assert main(["pretrain", "--run", str(tiny_tokens), *KEYS, *PATIENT]) == 0
    said = capsys.readouterr().err
    assert "3 steps in a row up to step 14 were skipped: rolls back to step 10 and leaves out the 4 batches" in said
    assert_same_bits(reference, stage)
    assert find(stage).left_out == [[10, 4]]
    (told,) = [row for row in rows(stage) if "rolled_back" in row]
    assert told == {"step": 10, "rolled_back": 4} and not any("skipped" in row for row in rows(stage))
    losses = sum((row.get("losses", []) for row in rows(stage)), [])
    assert len(losses) == 30 and None not in losses
    capsys.readouterr()
    assert main(["data", "--run", str(tiny_tokens), *KEYS, "--step=10", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert main(["data", "--run", str(reference.parent), *KEYS, "--step=14", "--json"]) == 0
    assert after == json.loads(capsys.readouterr().out), "step 10 is made of batch 14"


@pytest.mark.ci
@pytest.mark.parametrize("told", [True, False])
def test_text_that_is_new_from_a_step_on_is_learned(tiny_tokens, monkeypatch, capsys, told):
    """If the recipe tells where it begins, no step is skipped; if it does not, the training goes back once."""
    plain, begins = Stream._built, 20

    def built(self, start, stop):
        batches = plain(self, start, stop)
        for step, batch in zip(range(start, stop), batches, strict=True):
            if step >= begins:  # another language: each token is another one
                batch.inputs[:], batch.targets[:] = 595 - batch.inputs, 595 - batch.targets
        return batches

    monkeypatch.setattr(Stream, "_built", built)
    monkeypatch.setattr(Stream, "changes", lambda self, step: told and step == begins)
    keys = ["--pretrain.optimizer.skip.window=8", "--pretrain.log_every=1", "--pretrain.evaluate_every=0"]
    assert main(["pretrain", "--run", str(tiny_tokens), *keys, *PATIENT]) == 0
    said, stage = capsys.readouterr().err, tiny_tokens / "pretrain"
    learns = "and the model is as good as before: their text is new. It goes back to step 20, to learn the text from"
    assert (learns in said, "is skipped" in said) == (not told, not told)
    losses = sum((row.get("losses", []) for row in rows(stage)), [])
    assert len(losses) == 30 and losses[20] > losses[19] * 1.6 and losses[29] < losses[20] - 0.5
    assert (find(stage).opened, find(stage).left_out) == ([] if told else [20], [])


@pytest.mark.parametrize(
    ("saved", "every", "bad", "target", "kept"),
    [
        ([5, 10, 15], 5, 14, 10, [15]),
        ([5, 10, 13], 5, 14, 10, [13]),  # saved by the clock, which must not decide a result
        ([7, 11], 0, 14, 11, []),
        ([10, 15], 5, 17, 10, [15]),  # made while steps were skipped
        ([15], 5, 17, 15, []),  # the oldest has the state from before them
        ([], 5, 14, 0, []),
    ],
)
def test_where_it_rolls_back_to(tmp_path, monkeypatch, saved, every, bad, target, kept):
    stage, skip = tmp_path / "pretrain", SkipConfig(patience=3, rollbacks=2)
    for step in saved:
        (stage / "checkpoints" / str(step)).mkdir(parents=True)
    (stage / "tokenizer").mkdir(parents=True)
    monkeypatch.setattr(resume, "described", lambda folder, step: SimpleNamespace(horizons=[[0, 20], [step, 30]]))
    monkeypatch.setattr(resume, "steps", lambda folder: saved)
    config = TrainConfig(steps=30, checkpoint=CheckpointConfig(every_steps=every), optimizer=OptimizerConfig(skip=skip))
    found = resume.rolled_back(stage, Start(0, [[0, 30]], [[1, 2]], [1, 20]), RollBack(bad), config)
    assert (found.step, found.left_out) == (target, [[1, 2], [target, bad - target]])
    assert found.opened == [step for step in (1, 20) if step <= target]
    assert found.horizons == ([[0, 20], [target, 30]] if target else [[0, 30]])
    assert sorted(int(path.name) for path in (tmp_path / "replaced").glob("*/checkpoints/*")) == kept
    with pytest.raises(UserError, match="up to step 14 were skipped, and it has rolled back 2 times"):
        resume.rolled_back(stage, found, RollBack(14), config)
    for step in kept:
        (stage / "checkpoints" / str(step)).mkdir(parents=True)
    learns = resume.rolled_back(stage, found, RollBack(bad, new_text=True), config)
    assert (learns.step, learns.left_out, learns.opened) == (
        target,
        found.left_out,
        [*found.opened, max(target, bad - 3)],
    )


@pytest.mark.ci
def test_one_bad_step_is_skipped_and_told(tiny_tokens, poison, capsys):
    poison({6})
    assert main(["pretrain", "--run", str(tiny_tokens), *KEYS]) == 0
    stage, said = tiny_tokens / "pretrain", capsys.readouterr().err
    assert "step 7 is skipped and changes nothing: loss nan, gradient norm nan" in " ".join(said.split())
    (bad,) = sum((row.get("skipped", []) for row in rows(stage)), [])
    assert main(["data", "--run", str(tiny_tokens), *KEYS, "--step=6"]) == 0
    shown = capsys.readouterr().out
    assert "this step was skipped: loss nan" in shown and all(document in shown for document in bad["documents"])
    assert bad["step"] == 7 and bad["documents"]
    losses = sum((row.get("losses", []) for row in rows(stage)), [])
    assert [step for step, loss in enumerate(losses, 1) if loss is None] == [7] and len(losses) == 30
    assert all(np.isfinite(row["loss"]) for row in rows(stage) if "loss" in row)
