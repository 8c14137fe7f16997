"""The search on a small model: all that can be run is tried, and nothing else; and which comes first."""

import dataclasses
import itertools
from math import prod

import pytest

from tests.planning.by_hand import DENSE, EXPERTS, setting
from tpullm.planning.economics import Estimate
from tpullm.planning.memory import Memory, resting
from tpullm.planning.search import NEAR, Candidate, assessed, in_order, meshes, search, settings, why_behind
from tpullm.planning.setting import RECOMPUTED
from tpullm.recipe.schema import OptimizerConfig


def candidate(seconds: float, peak: float = 1.0, computing: dict | None = None, exposed: dict | None = None, **changes):
    found = Estimate(seconds, computing or {"loss": seconds}, exposed or {}, (), 1.0, 0.5)
    return Candidate(dataclasses.replace(setting(fsdp=16), **changes), Memory({"x": peak}, "loss"), found)


def allowed(of, sizes, longest) -> bool:
    """Whether a mesh of these sizes holds the model and the slices."""
    data, fsdp, expert, sequence, tensor = sizes
    model = of.model
    split = (model.heads, model.kv_heads, model.mlp_width, model.vocabulary_size)
    return (
        prod(sizes) == of.topology.chips
        and all(size % tensor == 0 for size in split)
        and (model.experts % expert == 0 if model.experts else expert == 1)
        and model.width % fsdp == 0
        and data % of.topology.slices == 0
        and (sequence == 1 or (sequence <= longest and of.length % (2 * sequence) == 0))
    )


@pytest.mark.parametrize(
    ("of", "longest"),
    [
        (setting(fsdp=16), 1),
        (setting(EXPERTS, fsdp=16), 1),
        (setting(EXPERTS, "2 x v6e:2x4", data=2, fsdp=8), 1),
        (setting(fsdp=32, length=16384, topology="v6e:4x8"), 16),
        (setting(fsdp=32, length=16383, topology="v6e:4x8"), 1),
        (setting(fsdp=16, length=16400), 8),
        (setting(dataclasses.replace(DENSE, width=24), fsdp=16), 1),
    ],
)
def test_meshes_are_all_that_are_allowed(of, longest):
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if of.topology.chips % size == 0]
    expected = {each for each in itertools.product(sizes, repeat=5) if allowed(of, each, longest)}
    found = list(meshes(of))
    assert set(found) == expected and len(found) == len(expected)


def tried(of, sizes) -> set[int]:
    """The numbers of micro-batches that are tried on a mesh, beside the recipe's own."""
    return {one.accumulation for one in list(settings(of))[1:] if one.sizes == sizes}


def test_micro_batches_share_the_rows():
    of = setting(rows=96, fsdp=16)
    assert tried(of, (1, 16, 1, 1, 1)) == tried(of, (2, 8, 1, 1, 1)) == {1, 2, 3, 6}
    assert tried(setting(rows=8, fsdp=16), (1, 16, 1, 1, 1)) == set()
    one = setting(DENSE, "v6e:1x1", rows=1024)
    assert tried(one, (1, 1, 1, 1, 1)) == {1, 2, 4, 8, 16, 32, 64}  # of 64 at most, those that divide the rows


def beside(of) -> tuple[set[int], set[int]]:
    """The attention blocks and the numbers of loss chunks that are tried on its own mesh, as it accumulates."""
    own = [one for one in settings(of) if (one.sizes, one.accumulation) == (of.sizes, of.accumulation)]
    return {one.attention_block for one in own}, {one.loss_chunks for one in own}


def test_blocks_and_chunks_beside_the_platforms_own():
    table = {"attention": dict.fromkeys((128, 256, 512, 1024, 2048), {})}
    of = setting(fsdp=16, length=4096, chip=table)
    assert of.block == 1024 and beside(of)[0] == {0, 256, 512, 2048}
    assert beside(setting(fsdp=8, sequence=2, length=18432, rows=8, chip=table))[0] == {0, 256}  # of 4,608 in a piece
    assert beside(setting(fsdp=16))[0] == {0}  # no kernel is known
    large = setting(dataclasses.replace(DENSE, vocabulary_size=1 << 20), fsdp=16, rows=64)
    assert large.chunks == 4 and beside(large)[1] == {0, 1, 2, 8, 16}
    assert setting(fsdp=16).chunks == 1 and beside(setting(fsdp=16))[1] == {0, 2, 4}


def test_every_way_is_tried_once_and_the_recipes_own_first():
    base = setting(fsdp=16, rows=32)
    found = list(settings(base))
    assert found[0] == base and len(found) == len({repr(one) for one in found})
    ways = {(one.sizes, one.remat, one.accumulation) for one in found}
    rows = {sizes: 32 / prod(sizes[:3]) for sizes in meshes(base)}
    parts = {sizes: [p for p in (1, 2, 4, 8, 16, 32) if (each / p).is_integer()] for sizes, each in rows.items()}
    assert ways == {(sizes, remat, p) for sizes in rows for remat in RECOMPUTED for p in parts[sizes]}
    assert {one.loss_chunks for one in found} == {0, 2, 4} and {one.rows for one in found} == {32}


def test_a_search_counts_what_fits_and_stops_where_something_does():
    base = setting(fsdp=16, rows=32)
    found = search(base, most=3)
    assert found.screened == found.fitting == len(list(settings(base))) and len(found.best) == 3 and found.seconds > 0
    assert {one.setting.optimizer.moments for one in found.best} == {"float32"}
    least = min(assessed(one, resting(base.model, base.optimizer)).memory.peak for one in settings(base))
    tight = search(dataclasses.replace(base, device=dataclasses.replace(base.device, hbm_bytes=least)))
    assert 1 <= tight.fitting < tight.screened == found.screened
    assert all(one.memory.peak == least for one in tight.best)
    half = search(dataclasses.replace(base, device=dataclasses.replace(base.device, hbm_bytes=least - 1)))
    assert half.screened == 2 * found.screened
    assert {one.setting.optimizer.moments for one in half.best} == {"bfloat16"}
    without = dataclasses.replace(base, device=dataclasses.replace(base.device, hbm_bytes=1))
    none = search(without)
    assert none.best == () and none.fitting == 0 and none.screened == 2 * found.screened
    for optimizer in (OptimizerConfig(kind="adafactor"), OptimizerConfig(moments="bfloat16")):
        assert search(dataclasses.replace(without, optimizer=optimizer)).screened == found.screened


def test_steps_that_are_as_long_are_told_apart_by_changes_and_then_by_memory():
    base = setting(fsdp=16)
    changed = candidate(1.0, remat="none")
    near, smaller = candidate(1 + NEAR / 2, 2.0), candidate(1 + NEAR / 2, 1.0)
    slower = candidate(1 + 2 * NEAR)
    assert in_order([slower, changed, near, smaller], base) == [smaller, near, changed, slower]
    assert in_order([], base) == []
    more = candidate(1.0, remat="none", accumulation=2)
    assert in_order([more, changed], base) == [changed, more]


def test_blocks_and_chunks_alone_make_no_other_way():
    best = search(setting(fsdp=16, rows=32), most=1000).best
    assert len({(one.setting.sizes, one.setting.remat, one.setting.accumulation) for one in best}) == len(best)


def test_a_runner_up_is_told_what_it_loses_most_with():
    best = candidate(1.0, computing={"loss": 0.5, "attention": 0.5})
    one = candidate(2.0, computing={"loss": 0.7, "attention": 0.6}, exposed={"fsdp": 0.7})
    assert why_behind(one, best) == "100.0% slower: 700 ms more of waiting for fsdp"
    assert why_behind(candidate(1 + NEAR / 2), best).startswith("as fast")
    assert why_behind(candidate(1.0025, computing={"loss": 1.0025}), best).startswith("0.2% slower")


def test_a_candidate_names_its_keys():
    one = candidate(1.0)
    assert one.mesh == {"fsdp": 16} and one.time is one.estimate
    assert Candidate(setting(topology="v6e:1x1"), one.memory, None).mesh == {"fsdp": 1}
    assert Candidate(one.setting, one.memory, None).time.step_seconds > 0
    keys = one.keys()
    assert keys["mesh"] == "{fsdp: 16}" and keys["pretrain.accumulation"] == 1
    assert (keys["model.remat"], keys["pretrain.optimizer.moments"]) == ("full", "float32")


def test_what_fits_exactly_fits():
    of = setting(fsdp=16)
    peak = assessed(of, resting(of.model, of.optimizer)).memory.peak
    limit = lambda size: dataclasses.replace(of, device=dataclasses.replace(of.device, hbm_bytes=size))  # noqa: E731
    assert assessed(limit(peak), resting(of.model, of.optimizer)).estimate
    assert assessed(limit(peak - 1), resting(of.model, of.optimizer)).estimate is None
