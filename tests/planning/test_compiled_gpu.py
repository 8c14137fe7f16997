"""What XLA makes of the step for GPUs: no GPU is here, and the program is the one that would run.

Twelve layers of a recipe's widths: a loop's program does not depend on how often it runs, but XLA unrolls short loops.
What a GPU would choose by trial (the kernels of products) is not in it.
"""

import dataclasses
import functools

import pytest

from tests.conftest import ROOT
from tests.gpu_compiler import needs_gpu_compiler
from tpullm.hardware.topologies import parse
from tpullm.planning import gpu_schedule
from tpullm.planning.compiling import compile_apart
from tpullm.planning.instructions import computations
from tpullm.planning.program import job_of
from tpullm.planning.search import assess_memory
from tpullm.planning.setting import Job, setting_of
from tpullm.recipe.parsing import load

pytestmark = needs_gpu_compiler
LENGTH, LAYERS = 2560, 12  # the length is no width of a model
CARDS = ("a100:8", "h100:8", "h200:8", "b200:8", "gb200:4", "l4:8")
NAMES = [
    pytest.param("8b", "h100:8", marks=pytest.mark.ci),  # other tests read this program
    *(pytest.param("125m", name, marks=pytest.mark.slow) for name in CARDS),
]


@functools.cache
def program(name: str, topology: str):
    recipe, gpus = load(ROOT / "configs" / "pretrain" / f"{name}.yaml"), parse(topology)
    model = dataclasses.replace(recipe.model, layers=LAYERS).resolved(recipe.tokenizer.vocabulary_size)
    rows = {"accumulation": 1, "batch_size": gpus.chips, "sequence_length": LENGTH}
    config = dataclasses.replace(recipe.pretrain, **rows, loss_chunks=4)
    return compile_apart(Job(model, config, {"fsdp": -1}, gpus), name).text


def collectives(topology: str, text: str):
    return [item for item in gpu_schedule.schedule_on_gpu(text, parse(topology)) if item.collective]


@pytest.mark.parametrize(("recipe", "name"), NAMES)
def test_the_step_compiles_for_each_gpu_and_holds_no_scores_of_all_pairs(recipe, name):
    text = program(recipe, name)
    found = [shape.dims for body in computations(text).values() for one in body for shape in one.shapes]
    assert [dims for dims in found if dims.count(LENGTH) > 1] == []
    assert "attention" in text


@pytest.mark.ci
def test_collectives_are_not_waited_for_and_move_gradients_once_and_parameters_twice():
    """In the loops, gathers of parameters and scatters of gradients are asynchronous; each goes in one step."""
    every = collectives("h100:8", program("8b", "h100:8"))
    found = [one for one in every if one.times > 1 and one.collective.bytes > 1 << 20]
    assert {one.collective.kind for one in found} == {"all-gather", "reduce-scatter"}
    assert all(one.instruction.opcode.endswith("-start") for one in found)
    assert all('"is_sync":true' not in one.instruction.attributes for one in found)
    assert {len(group) for one in found for group in one.collective.devices()} == {8}
    # In bfloat16, by the bytes of whole arrays; the tables once more or less, as the loss needs them.
    recipe = load(ROOT / "configs" / "pretrain" / "8b.yaml")
    model = dataclasses.replace(recipe.model, layers=LAYERS).resolved(recipe.tokenizer.vocabulary_size)
    width, kv = model.width, model.kv_heads * model.head_width
    layers = LAYERS * 2 * (2 * width * width + 2 * width * kv + 3 * width * model.mlp_width)
    table = 2 * model.vocabulary_size * width
    moved = {"all-gather": 0, "reduce-scatter": 0}
    for one in collectives("h100:8", program("8b", "h100:8")):
        if one.collective.kind in moved:
            moved[one.collective.kind] += one.times * one.collective.bytes
    assert moved["reduce-scatter"] == pytest.approx(layers + 2 * table, rel=0.01)
    assert 2 * layers + 2 * table <= moved["all-gather"] <= 1.01 * (2 * layers + 3 * table)


@pytest.mark.slow
def test_gradients_of_weights_are_not_put_off():
    """Where memory is free XLA would keep the inputs of those of a second layer: 3 of 9 GiB more (`barrier_on_gpu`)."""
    options = ["--model.remat=full", f"--model.layers={LAYERS}", "--pretrain.batch_size=64"]
    job = job_of(load(ROOT / "configs" / "pretrain" / "1b.yaml", options), parse("a100:8"))
    assert compile_apart(job, "1b").peak_bytes < 1.08 * assess_memory(setting_of(job)).memory.peak


@pytest.mark.slow
def test_a_program_above_the_memory_is_refused():
    """XLA compiles it: without recomputation the activations of eight rows take more than three quarters of a card."""
    recipe = load(ROOT / "configs" / "pretrain" / "8b.yaml", ["--model.remat=none", "--model.layers=4"])
    model = recipe.model.resolved(recipe.tokenizer.vocabulary_size)
    config = dataclasses.replace(recipe.pretrain, accumulation=1, batch_size=8, sequence_length=8192)
    job = Job(model, config, {"fsdp": -1}, parse("h100:1"))
    refused = compile_apart(job, "8b")
    assert not refused.text and refused.limit_bytes == pytest.approx(59.3 * 2**30, rel=1e-3)


@pytest.mark.ci
def test_the_time_counts_products_and_attention():
    recipe = load(ROOT / "configs" / "pretrain" / "8b.yaml")
    model = dataclasses.replace(recipe.model, layers=LAYERS).resolved(recipe.tokenizer.vocabulary_size)
    items = gpu_schedule.schedule_on_gpu(program("8b", "h100:8"), parse("h100:8"))
    kv = model.kv_heads * model.head_width
    layer = 2 * model.width * (model.width + kv) + 3 * model.width * model.mlp_width
    parameters = LAYERS * layer + model.vocabulary_size * model.width
    least = 6 * parameters * LENGTH / 989e12
    # All matmuls but the loss' once more, at 0.55 of the peak; attention, element-wise work and the update beside them.
    assert 2 * least < sum(item.seconds for item in items) < 3.5 * least
