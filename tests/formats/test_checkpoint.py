"""What a MODEL argument means, and that a checkpoint describes itself."""

import shutil

import pytest

from tpullm.formats.models import find
from tpullm.system.errors import UserError


def test_a_run_means_its_last_finished_stage(tiny_run, tmp_path):
    assert find(tiny_run).stage == "talk"
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run, run)
    (run / "talk" / "manifest.json").unlink()
    assert find(run).stage == "pretrain"


def test_a_stage_means_its_last_save_and_a_checkpoint_itself(tiny_run):
    last = find(tiny_run / "pretrain")
    assert (last.stage, last.step, last.run) == ("pretrain", 30, tiny_run)
    assert last.tokenizer_path.exists()
    one = find(tiny_run / "pretrain" / "checkpoints" / "25")
    assert (one.step, one.config) == (25, last.config)
    assert one.config.width == 32 and one.config.vocabulary_size == 640
    assert one.recipe["name"] == "tiny"


def test_a_save_that_did_not_finish_is_no_checkpoint(tiny_run, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run, run)
    checkpoints = run / "pretrain" / "checkpoints"
    (checkpoints / "30").rename(checkpoints / "30.orbax-checkpoint-tmp")
    assert find(run / "pretrain").step == 25
    with pytest.raises(UserError, match="no such folder"):
        find(checkpoints / "30")
    (checkpoints / "30").mkdir()
    with pytest.raises(UserError, match="not a checkpoint of tpullm"):
        find(checkpoints / "30")
