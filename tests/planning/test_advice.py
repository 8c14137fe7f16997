"""What a plan that does not fit is told to change: first a key that leaves the result as it is."""

import dataclasses

from tpullm.hardware.slices import parse
from tpullm.planning.advice import _changes, advise
from tpullm.planning.resting import resting
from tpullm.planning.search import assessed
from tpullm.planning.setting import setting_of
from tpullm.recipe.parsing import load


def assess(setting):
    return assessed(setting, resting(setting.model, setting.optimizer))


def made(topology, *options):
    recipe = load("8b", list(options))
    model = recipe.model.resolved(recipe.tokenizer.vocabulary_size)
    return setting_of(model, recipe.pretrain, recipe.mesh, parse(topology))


def test_more_micro_batches_come_before_another_optimizer():
    """Adafactor would be faster here. Two micro-batches fit as well, and change no number of the result."""
    setting = made("v6e:8x8")
    assert advise(assess(setting)).change == "pretrain.accumulation: 2"
    fits = assess(dataclasses.replace(setting, accumulation=2))
    adafactor = dataclasses.replace(setting.optimizer, kind="adafactor")
    other = assess(dataclasses.replace(setting, optimizer=adafactor))
    assert fits.memory.peak < setting.device.hbm_bytes
    assert other.estimate.tokens_per_second > fits.estimate.tokens_per_second


def test_a_key_that_changes_the_result_is_told_where_no_other_helps():
    """AdamW's state alone is larger than half of the memory of four chips."""
    setting = made("v6e:2x2", "--pretrain.batch_size=4", "--model.remat=full")
    assert advise(assess(setting)).change == "pretrain.optimizer.kind: adafactor"


def test_every_change_that_is_tried_could_be_run():
    """The rows of each can be shared by the devices of its mesh, in whole micro-batches."""
    setting, seen = made("v6e:8x8", "--pretrain.batch_size=32", "--mesh={fsdp: 16, tensor: 4}"), set()
    for change, changed in _changes(setting):
        key = change.split(":")[0]
        seen.add(key)
        assert changed.rows % (changed.accumulation * changed.along("data", "fsdp", "expert")) == 0, change
        assert changed.length % (changed.chunks * changed.along("sequence")) == 0, change
    assert seen >= {"model.remat", "pretrain.loss_chunks", "mesh", "pretrain.optimizer.kind", "pretrain.batch_size"}
