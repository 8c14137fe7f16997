"""Every shipped recipe for TPUs or GPUs is traced for the topology that it names, without a chip."""

import re
import time

import pytest

from tests.shipped_recipes import for_accelerators
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture, parameter_count
from tpullm.planning.program import absent_mesh, job_of, traced_step
from tpullm.recipe.fields import result
from tpullm.recipe.parsing import load

RECIPES = for_accelerators()
ELSEWHERE = re.compile("-(gpu|tpu7x)$")  # ends the name of a recipe that is the training of another one, elsewhere
# What their names say, in parameters; of the published shapes, the tables of tokens counted once.
SIZES = {"125m": 110e6, "350m": 336e6, "1b": 1.236e9, "8b": 8.03e9, "70b": 70.55e9, "175b": 174.6e9, "1t": 1.028e12}
SIZES |= {"405b": 405.9e9, "8x7b": 46.7e9, "8b-lora": SIZES["8b"], "8b-qlora": SIZES["8b"], "70b-qlora": SIZES["70b"]}


def test_there_is_one_of_each_size():
    assert {ELSEWHERE.sub("", path.stem) for path in RECIPES} == set(SIZES)
    there = {(ELSEWHERE.sub("", path.stem), load(path).topology.split(":")[0]) for path in RECIPES}
    assert {name for name, chip in there if chip == "h100"} == {
        "125m",
        "1b",
        "8b",
        "70b",
        "8x7b",
        "8b-lora",
        "8b-qlora",
    }
    assert {name for name, chip in there if chip == "tpu7x"} == {"70b", "8x7b", "405b"}


@pytest.mark.parametrize("path", [path for path in RECIPES if ELSEWHERE.search(path.stem)], ids=lambda path: path.stem)
def test_the_training_elsewhere_is_the_same(path):
    """Only the machine differs, and what may differ with it: keys that change roundings, or nothing."""
    elsewhere, first = load(path), load(path.with_stem(ELSEWHERE.sub("", path.stem)))
    kind = "gpu" if parse(elsewhere.topology).chip.gpu else elsewhere.topology.split(":")[0]
    assert path.stem.endswith(f"-{kind}") and not parse(first.topology).chip.gpu
    assert deciding(elsewhere) == deciding(first)


def deciding(recipe) -> list[dict]:
    return [result(of) for of in (recipe.tokenizer, recipe.model, recipe.pretrain, *recipe.finetune.values())]


QUICK = ("125m", "125m-gpu")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.ci] * (path.stem not in QUICK)) for path in RECIPES],
)
def test_a_recipe_is_traced_under_its_own_mesh(path):
    start = time.monotonic()
    recipe = load(path)
    topology = parse(recipe.topology)
    job = job_of(recipe, topology)
    text = traced_step(job, absent_mesh(job.mesh, topology)).as_text()
    assert time.monotonic() - start < 60
    named = SIZES[ELSEWHERE.sub("", path.stem)]
    assert parameter_count(Architecture(job.model).shapes) == pytest.approx(named, rel=5e-3)
    assert f"num_partitions = {topology.devices}" in text
    # Attention is the device's own kernel, and layers are a loop: as many copies of the kernel as one layer has.
    splash, triton = r'@tpu_custom_call.*?kernel_name = "splash', "@.*triton.*triton_attention"
    assert 0 < len(re.findall(f"custom_call {triton if topology.chip.gpu else splash}", text)) < 24
