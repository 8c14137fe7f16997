"""The search: all that can be run is tried, and nothing else, and the fastest comes first; and the advice."""

import dataclasses
import itertools
from math import prod

import jax
import pytest

from tests.conftest import ROOT
from tests.planning.by_hand import DENSE, EXPERTS, setting
from tests.shipped_recipes import for_accelerators
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import planned_mesh
from tpullm.planning import search as searching
from tpullm.planning.economics import Estimate, estimate_step
from tpullm.planning.memory import Memory, device_bytes, global_state
from tpullm.planning.program import job_of
from tpullm.planning.search import Candidate, advise, assess_memory, meshes, variants
from tpullm.planning.setting import RECOMPUTED, setting_of
from tpullm.recipe.mesh_axes import AXES
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import OptimizerConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state

RECIPES = [path.stem for path in for_accelerators("pretrain")]
QUICK = ("125m", "1b-gpu", "8x7b")  # a chip, GPUs, experts


def made(name: str, topology: str = "", *options: str):
    recipe = load(ROOT / "configs" / "pretrain" / f"{name}.yaml", list(options))
    return recipe, setting_of(job_of(recipe, parse(topology or recipe.topology)))


def limited(of, size: float):
    return dataclasses.replace(of, device=dataclasses.replace(of.device, hbm_bytes=size))


def candidate(seconds: float, peak: float = 1.0, computing: dict | None = None, exposed: dict | None = None, **changes):
    found = Candidate(dataclasses.replace(setting(fsdp=16), **changes), Memory({"x": peak}, "loss"))
    vars(found)["estimate"] = Estimate(seconds, computing or {"loss": seconds}, exposed or {}, (), 1.0, 0.5)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RECIPES]
)
def test_the_search_is_never_worse_than_the_recipe(name):
    recipe, own = made(name)
    found = searching.search(own)
    best = found.best[0]
    assert own in list(variants(own)) and found.screened > found.fitting > 0
    assert best.estimate.step_seconds <= estimate_step(own).step_seconds
    # It can be run, and its figures are those of the recipe that it makes.
    changed = best.changed(recipe)
    again = assess_memory(setting_of(job_of(changed, parse(changed.topology))))
    assert again.memory == best.memory and again.estimate == best.estimate
    assert changed.pretrain.batch_size == recipe.pretrain.batch_size
    assert changed.pretrain.optimizer == recipe.pretrain.optimizer


def test_thousands_are_screened_in_seconds():
    """2,000 a second on two idle cores is promised; a tenth of that holds on a machine at work, too."""
    found = searching.search(made("8x7b", "v5p:8x8x16", "--mesh={fsdp: -1}")[1])
    assert found.screened > 1000 and found.screened / found.seconds > 200


@pytest.mark.parametrize("mesh", [(1, 8, 1, 1, 1), (2, 4, 1, 1, 2), (1, 2, 4, 1, 2)])
def test_the_global_state_is_divided_as_its_shardings_cut_it(mesh):
    recipe = load(ROOT / "configs" / "pretrain" / "8x7b.yaml")
    model = recipe.model.resolved(32000)
    architecture = Architecture(model)
    placed = planned_mesh(dict(zip(AXES, mesh, strict=True)), prod(mesh))
    state = abstract_state(architecture, make_optimizer(recipe.pretrain.optimizer, 10, architecture.axes), placed)
    here = [prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    whole = global_state(model, recipe.pretrain.optimizer)
    assert device_bytes(whole.parameters + whole.optimizer, mesh) == sum(here) - 4  # the step's number


def allowed(of, sizes, longest) -> bool:
    data, fsdp, expert, sequence, tensor = sizes
    model = of.model
    split = (model.heads, model.kv_heads, model.mlp_width, model.vocabulary_size)
    return (
        prod(sizes) == of.topology.devices
        and all(size % tensor == 0 for size in split)
        and (model.experts % expert == 0 if model.experts else expert == 1)
        and model.width % fsdp == 0
        and data % of.topology.slices == 0
        and (sequence == 1 or (sequence <= longest and of.length % (2 * sequence) == 0))
    )


@pytest.mark.parametrize(
    ("of", "longest"),
    [
        (setting(EXPERTS, fsdp=16), 1),
        (setting(EXPERTS, "2 x v6e:2x4", data=2, fsdp=8), 1),
        (setting(fsdp=32, length=16384, topology="v6e:4x8"), 16),
        (setting(fsdp=32, length=16383, topology="v6e:4x8"), 1),
        (setting(fsdp=16, length=16400), 8),
        (setting(EXPERTS, "tpu7x:2x2x1", fsdp=8), 1),  # two devices a chip
        (setting(dataclasses.replace(DENSE, width=24), fsdp=16), 1),
    ],
)
def test_meshes_are_all_that_are_allowed(of, longest):
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if of.topology.devices % size == 0]
    expected = {each for each in itertools.product(sizes, repeat=5) if allowed(of, each, longest)}
    found = list(meshes(of))
    assert set(found) == expected and len(found) == len(expected)


def tried(of, sizes) -> set[int]:
    return {one.accumulation for one in list(variants(of))[1:] if one.sizes == sizes}


def test_micro_batches_share_the_rows_and_blocks_and_chunks_are_beside_the_platforms_own():
    of = setting(rows=96, fsdp=16)
    assert tried(of, (1, 16, 1, 1, 1)) == tried(of, (2, 8, 1, 1, 1)) == {1, 2, 3, 6}
    assert tried(setting(rows=8, fsdp=16), (1, 16, 1, 1, 1)) == set()
    one = setting(DENSE, "v6e:1x1", rows=1024)
    assert tried(one, (1, 1, 1, 1, 1)) == {1, 2, 4, 8, 16, 32, 64}  # of 64 at most, those that divide the rows
    table = {"attention": dict.fromkeys((128, 256, 512, 1024, 2048), {})}
    of = setting(fsdp=16, length=4096, chip=table)
    assert of.block == 1024 and beside(of)[0] == {0, 256, 512, 2048}
    assert beside(setting(fsdp=8, sequence=2, length=18432, rows=8, chip=table))[0] == {0, 256}  # of 4,608 in a piece
    assert beside(setting(fsdp=16))[0] == {0}  # no kernel is known
    large = setting(dataclasses.replace(DENSE, vocabulary_size=1 << 20), fsdp=16, rows=64)
    assert large.chunks == 4 and beside(large)[1] == {0, 1, 2, 8, 16}
    assert setting(fsdp=16).chunks == 1 and beside(setting(fsdp=16))[1] == {0, 2, 4}


def beside(of) -> tuple[set[int], set[int]]:
    own = [one for one in variants(of) if (one.sizes, one.accumulation) == (of.sizes, of.accumulation)]
    return {one.attention_block for one in own}, {one.loss_chunks for one in own}


def test_every_way_is_tried_once_and_the_recipes_own_first():
    base = setting(fsdp=16, rows=32)
    found = list(variants(base))
    assert found[0] == base and len(found) == len({repr(one) for one in found})
    rows = {sizes: 32 / prod(sizes[:3]) for sizes in meshes(base)}
    parts = {sizes: [p for p in (1, 2, 4, 8, 16, 32) if (each / p).is_integer()] for sizes, each in rows.items()}
    ways = {(sizes, remat, p) for sizes in rows for remat in RECOMPUTED for p in parts[sizes]}
    assert {(one.sizes, one.remat, one.accumulation) for one in found} == ways
    assert {one.loss_chunks for one in found} == {0, 2, 4} and {one.rows for one in found} == {32}
    # Blocks and chunks alone make no other way.
    best = [one.setting for one in searching.search(base, most=1000).best]
    assert len({(one.sizes, one.remat, one.accumulation) for one in best}) == len(best)


def test_a_search_counts_what_fits_and_stops_where_something_does():
    base = setting(fsdp=16, rows=32)
    found = searching.search(base, most=3)
    assert found.screened == found.fitting == len(list(variants(base))) and len(found.best) == 3 and found.seconds > 0
    assert {one.setting.optimizer.moments for one in found.best} == {"float32"}
    least = min(assess_memory(one).memory.peak for one in variants(base))
    tight = searching.search(limited(base, least))  # what fits exactly fits
    assert 1 <= tight.fitting < tight.screened == found.screened
    assert all(one.memory.peak == least for one in tight.best)
    half = searching.search(limited(base, least - 1))
    assert half.screened == 2 * found.screened
    assert {one.setting.optimizer.moments for one in half.best} == {"bfloat16"}
    without = limited(base, 1)
    none = searching.search(without)
    assert none.best == () and none.fitting == 0 and none.screened == 2 * found.screened
    for optimizer in (OptimizerConfig(kind="adafactor"), OptimizerConfig(moments="bfloat16")):
        assert searching.search(dataclasses.replace(without, optimizer=optimizer)).screened == found.screened


def test_steps_that_are_as_long_are_told_apart_and_a_runner_up_is_told_what_it_loses_with():
    base = setting(fsdp=16)
    changed, more = candidate(1.0, remat="none"), candidate(1.0, remat="none", accumulation=2)
    near, smaller = candidate(1 + searching.NEAR / 2, 2.0), candidate(1 + searching.NEAR / 2, 1.0)
    slower = candidate(1 + 2 * searching.NEAR)
    assert searching.fastest_first([slower, more, changed, near, smaller], base) == [
        smaller,
        near,
        changed,
        more,
        slower,
    ]
    assert searching.fastest_first([], base) == []
    best = candidate(1.0, computing={"loss": 0.5, "attention": 0.5})
    one = candidate(2.0, computing={"loss": 0.7, "attention": 0.6}, exposed={"fsdp": 0.7})
    assert searching.why_behind(one, best) == "100.0% slower: 700 ms more of waiting for fsdp"
    assert searching.why_behind(candidate(1 + searching.NEAR / 2), best).startswith("as fast")
    assert searching.why_behind(candidate(1.0025, computing={"loss": 1.0025}), best).startswith("0.2% slower")
    keys = candidate(1.0).keys()
    assert keys["mesh"] == "{fsdp: 16}" and keys["pretrain.accumulation"] == 1
    assert (keys["model.remat"], keys["pretrain.optimizer.moments"]) == ("full", "float32")
    assert searching.mesh_of(setting(topology="v6e:1x1")) == {"fsdp": 1}


def test_the_change_makes_it_fit_and_no_other_that_keeps_the_result_is_faster():
    of = setting(DENSE, fsdp=16, remat="none", rows=512)
    assert advise(assess_memory(of)) is None
    tight = assess_memory(limited(of, assess_memory(of).memory.peak - 1))
    advice, kinds = advise(tight), tight.memory.kinds
    assert advice.over_bytes == 1 and advice.largest_bytes == kinds[advice.largest] == max(kinds.values())
    fitting = {key: one for key, of in searching.changes_of_one_key(tight.setting) if (one := assess_memory(of)).fits}
    resumes = ("model.remat", "mesh", "pretrain.accumulation", "pretrain.loss_chunks")
    fastest = max(found.estimate.tokens_per_second for key, found in fitting.items() if key.startswith(resumes))
    assert fitting[advice.change].estimate.tokens_per_second == fastest
    assert advise(assess_memory(limited(setting(fsdp=16), 1))).change == ""  # nothing helps


def test_each_change_is_of_one_key_and_can_be_run():
    of = setting(fsdp=8, tensor=2, rows=64, accumulation=2, loss_chunks=2)
    changes = dict(searching.changes_of_one_key(of))
    fields = ("sizes", "remat", "accumulation", "loss_chunks", "optimizer", "rows")
    for key, one in changes.items():
        differ = [name for name in fields if getattr(one, name) != getattr(of, name)]
        assert len(differ) == 1 or key in ("model.remat: full", "mesh: {fsdp: 8, tensor: 2}"), key
        assert one.rows // one.accumulation % one.along("data", "fsdp", "expert") == 0
    named = lambda name: [key.split(": ")[1] for key in changes if key.startswith(name)]  # noqa: E731
    assert named("pretrain.accumulation") == ["4", "8"] and named("pretrain.batch_size") == ["32", "16"]
    assert named("pretrain.loss_chunks") == ["4", "8", "16", "32", "64", "128", "256"]
    assert named("pretrain.optimizer") == ["bfloat16", "adafactor", "muon"]
    few = setting(fsdp=8, tensor=2, accumulation=2)
    sizes = [one.sizes for key, one in searching.changes_of_one_key(few) if key.startswith("mesh")]
    assert sizes and all(8 % (data * fsdp * expert) == 0 for data, fsdp, expert, *_ in sizes)


def test_more_micro_batches_come_before_another_optimizer():
    """Adafactor would be faster here. Two micro-batches fit as well, and change no number of the result."""
    setting = made("8b", "v6e:8x8")[1]
    assert advise(assess_memory(setting)).change == "pretrain.accumulation: 2"
    fits = assess_memory(dataclasses.replace(setting, accumulation=2))
    adafactor = dataclasses.replace(setting.optimizer, kind="adafactor")
    other = assess_memory(dataclasses.replace(setting, optimizer=adafactor))
    assert fits.fits and other.estimate.tokens_per_second > fits.estimate.tokens_per_second
    # AdamW's state alone is larger than half of the memory of four chips, so a key that changes the result is told.
    small = made("8b", "v6e:2x2", "--pretrain.batch_size=4", "--model.remat=full")[1]
    assert advise(assess_memory(small)).change == "pretrain.optimizer.kind: adafactor"
