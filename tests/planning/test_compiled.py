"""What the TPU compiler makes of the step: no chip is here, and the program is the one that would run.

A recipe's own widths, rows and mesh, on its own slice, with two layers: a loop's program does not depend on how often
it runs. The smallest takes 40 s of processor time, and CI runs it; all others are under `-m slow`.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re

import jax
import pytest

from tests.conftest import ROOT
from tests.planning.hlo_text import between_slices, collectives, largest_arrays
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture
from tpullm.planning.instructions import computations
from tpullm.planning.program import compiled_step, compiler_mesh
from tpullm.planning.setting import Job
from tpullm.recipe.parsing import load

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
SMALL = 1 << 20  # bytes: norms, losses and the like
CASES = [("1b", "v5e:8x8"), ("1b", "v5e:16x16"), ("8b", "v6e:16x16"), ("8b", "v5p:4x4x4"), ("70b", "v5p:8x8x8")]
DENSE = [
    pytest.param("125m", "v5e:4x4", marks=pytest.mark.ci),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES),
]


@functools.cache
def program(name: str, slice_name: str, mesh: tuple | None = None):
    """A recipe with two layers and a row a device on a slice: its config, and the program's text."""
    recipe, topology = load(ROOT / "configs" / "pretrain" / f"{name}.yaml"), parse(slice_name)
    model = dataclasses.replace(recipe.model, layers=2).resolved(recipe.tokenizer.vocabulary_size)
    config = dataclasses.replace(recipe.pretrain, accumulation=1, batch_size=topology.chips)
    job = Job(model, config, dict(mesh) if mesh else recipe.mesh, topology)
    placed = compiler_mesh(job.mesh, topology)
    return model, config, placed, compiled_step(job, placed).as_text()


def test_describing_a_slice_leaves_the_environment_as_it_was():
    """libtpu and JAX note there that this is a worker of a pod, and programs that start from here believe it."""
    before = dict(os.environ)
    compiler_mesh({"fsdp": -1}, parse("v5e:4x4"))
    assert dict(os.environ) == before


@pytest.mark.parametrize(("name", "slice_name"), DENSE)
def test_the_program_is_as_an_expert_would_write_it(name, slice_name):
    model, config, placed, text = program(name, slice_name)
    found = collectives(text)
    # Parameters are gathered in the loop, a layer's at a time and never the stack of them.
    gathers = [one for one in found if one.kind == "all-gather"]
    assert any(one.in_loop for one in gathers)
    layer = 2 * max(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(Architecture(model).shapes["layers"]))
    assert all(one.bytes <= layer for one in gathers if one.in_loop)
    assert all(one.bytes <= 2 * model.vocabulary_size * model.width for one in gathers)
    # Gradients are scattered as they are summed, nothing is summed everywhere. But on a v5e of 256 chips, once, after
    # the loop, the second step of a table's scatter is, a sixteenth of it; of two tables at once.
    assert any(one.kind == "reduce-scatter" and one.in_loop for one in found)
    everywhere = [one for one in found if one.kind == "all-reduce" and one.bytes > SMALL]
    assert [one for one in everywhere if one.in_loop] == []
    most = 2 * model.vocabulary_size * model.width // 8 if slice_name == "v5e:16x16" else 0
    assert [one for one in everywhere if one.bytes > most] == []
    # Nothing else moves: no reshard that nobody asked for.
    moved = {one.kind for one in found if one.bytes > SMALL} - {"all-reduce"}
    assert moved <= {"all-gather", "reduce-scatter", "collective-permute"}
    # The scores of all tokens never exist: no array of float32 is as large as those of a quarter of a device's tokens,
    # unless the table of tokens itself is.
    tokens = config.batch_size * config.sequence_length // placed.size
    most = max(tokens * model.vocabulary_size // 4, model.vocabulary_size * model.width, (1 << 30) // 4)
    assert largest_arrays(text, "f32") <= most
    assert "splash" in text


@pytest.mark.parametrize(("name", "slice_name"), DENSE)
def test_nothing_is_computed_or_laid_out_twice(name, slice_name):
    """Rotary positions do not turn queries around in memory, and an activation is no part of the products beside it."""
    model, _, _, text = program(name, slice_name)
    assert not re.search(rf"f32\[[\d,]+,2,{model.head_width // 2}\]", text)
    found = [one for body in computations(text).values() for one in body if "feed_forward" in one.operation]
    alone = [one for one in found if one.opcode == "fusion" and "kind=kLoop" in one.attributes]
    assert any(shape.dims[-1:] == (model.mlp_width,) for one in alone for shape in one.shapes)


@pytest.mark.parametrize(("name", "slice_name"), DENSE)
def test_other_work_goes_on_while_the_layers_gather(name, slice_name):
    """The bytes of a layer's collectives that nothing waits for. A v5e has no core for scatters: it waits for these."""
    found = [one for one in collectives(program(name, slice_name)[-1]) if one.in_loop and one.bytes > SMALL]
    kinds = ("all-gather",) if slice_name.startswith("v5e") else ("all-gather", "reduce-scatter")
    concerned = [one for one in found if one.kind in kinds]
    share = sum(one.bytes for one in concerned if one.asynchronous) / sum(one.bytes for one in concerned)
    # Beside the products of a v5e go the gathers' second steps; elsewhere all that goes along lines of the torus.
    assert share > (0.7 if slice_name.startswith("v5e") else 0.95)


@pytest.mark.slow
def test_experts_stay_and_tokens_travel():
    """The mixture: tokens by all-to-all, and of the experts' weights each device gathers those of its own alone."""
    model, config, placed, text = program("8x7b", "v6e:16x16")
    found = collectives(text)
    assert any("all-to-all" in one.kind and one.in_loop for one in found)
    own = 2 * model.experts // placed.shape["expert"] * model.width * model.mlp_width
    assert max(one.bytes for one in found if one.kind == "all-gather" and one.in_loop) <= own
    # What is scattered over `fsdp` is then summed over `data` and, if it is not an expert's, over `expert`: of both
    # tables at once, and of the matrices of a layer's experts.
    parts = 2 * 2 * model.vocabulary_size * model.width // placed.shape["fsdp"]
    assert [one for one in found if one.kind == "all-reduce" and one.bytes > parts] == []
    scattered = [one for one in found if one.kind == "reduce-scatter" and one.in_loop and one.bytes > SMALL]
    gathered = [one for one in found if one.kind == "all-gather" and one.in_loop and one.bytes > SMALL]
    assert scattered and gathered and all(one.asynchronous for one in scattered + gathered)
    assert "splash" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["125m", "1b"])
def test_between_slices_there_is_only_data(name):
    """Two slices: what crosses is the sum of gradients, each device's part with its counterpart's."""
    model, config, placed, text = program(name, "2 x v5e:4x4", (("data", 2), ("fsdp", -1)))
    crossing = between_slices(text)
    assert crossing and {kind for kind, _ in crossing} == {"all-reduce"}
    architecture = Architecture(model)
    arrays = zip(*map(jax.tree.leaves, (architecture.shapes, architecture.shardings(placed))), strict=True)
    largest = max(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in arrays)
    assert max(size for _, size in crossing) <= 4 * largest
    # All else stays within a slice, whose devices the program numbers from 0.
    within = placed.size // 2
    assert all(device < within for one in collectives(text) for group in one.devices() for device in group)
