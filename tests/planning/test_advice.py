"""The advice for a plan that does not fit: by how much, and the change that makes it fit and keeps the result."""

import dataclasses

from tests.planning.by_hand import DENSE, setting
from tpullm.hardware.topologies import parse
from tpullm.planning.memory import resting
from tpullm.planning.search import advise, assessed, changes_of_one_key
from tpullm.planning.setting import setting_of
from tpullm.recipe.parsing import load


def limited(of, size: float):
    return dataclasses.replace(of, device=dataclasses.replace(of.device, hbm_bytes=size))


def assess(of):
    return assessed(of, resting(of.model, of.optimizer))


def test_what_fits_needs_no_advice():
    assert advise(assess(setting(fsdp=16))) is None


def test_the_change_makes_it_fit_and_no_other_that_keeps_the_result_is_faster():
    of = setting(DENSE, fsdp=16, remat="none", rows=512)
    candidate = assess(limited(of, assess(of).memory.peak - 1))
    advice = advise(candidate)
    kinds = candidate.memory.kinds
    assert advice.over_bytes == 1 and advice.largest_bytes == kinds[advice.largest] == max(kinds.values())
    changes = dict(changes_of_one_key(candidate.setting))
    fitting = {key: found for key, found in ((key, assess(of)) for key, of in changes.items()) if found.estimate}
    resumes = ("model.remat", "mesh", "pretrain.accumulation", "pretrain.loss_chunks")
    fastest = max(found.estimate.tokens_per_second for key, found in fitting.items() if key.startswith(resumes))
    assert fitting[advice.change].estimate.tokens_per_second == fastest


def test_each_change_is_of_one_key_and_can_be_run():
    of = setting(fsdp=8, tensor=2, rows=64, accumulation=2, loss_chunks=2)
    changes = dict(changes_of_one_key(of))
    fields = ("sizes", "remat", "accumulation", "loss_chunks", "optimizer", "rows")
    for key, one in changes.items():
        differ = [name for name in fields if getattr(one, name) != getattr(of, name)]
        assert len(differ) == 1 or key in ("model.remat: full", "mesh: {fsdp: 8, tensor: 2}"), key
        assert one.rows // one.accumulation % one.along("data", "fsdp", "expert") == 0
    named = lambda name: [key.split(": ")[1] for key in changes if key.startswith(name)]  # noqa: E731
    assert named("pretrain.accumulation") == ["4", "8"] and named("pretrain.batch_size") == ["32", "16"]
    assert named("pretrain.loss_chunks") == ["4", "8", "16", "32", "64", "128", "256"]
    assert named("pretrain.optimizer") == ["bfloat16", "adafactor", "muon"]


def test_a_mesh_has_rows_for_all_its_devices():
    of = setting(fsdp=8, tensor=2, accumulation=2)
    sizes = [one.sizes for key, one in changes_of_one_key(of) if key.startswith("mesh")]
    assert sizes and all(8 % (data * fsdp * expert) == 0 for data, fsdp, expert, *_ in sizes)


def test_nothing_helps_a_chip_without_memory():
    assert advise(assess(limited(setting(fsdp=16), 1))).change == ""


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
