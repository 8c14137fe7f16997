"""What a device holds, against the compilers' own figures for the same programs, and each moment counted by hand."""

import dataclasses
import statistics

import pytest
import yaml

from tests.conftest import ROOT
from tests.planning.by_hand import ATTENTION, DENSE, EXPERTS, MLP, TABLE, setting
from tpullm.hardware.topologies import parse
from tpullm.planning import memory as memories
from tpullm.planning.memory import PROGRAM, GlobalState, device_bytes, device_memory
from tpullm.planning.program import job_of
from tpullm.planning.search import assess_memory
from tpullm.planning.setting import setting_of, with_remat
from tpullm.recipe.mesh_axes import written
from tpullm.recipe.parsing import load

EVERY = yaml.safe_load((ROOT / "benchmarks" / "compiled.yaml").read_text(encoding="utf-8"))["programs"]
ON_GPUS = [program for program in EVERY if parse(program["topology"]).chip.gpu]
PROGRAMS = [program for program in EVERY if program not in ON_GPUS]


def of_program(program: dict):
    options = {"mesh": written(program["mesh"])} | program["overrides"]
    (path,) = (ROOT / "configs").glob(f"*/{program['recipe']}.yaml")
    recipe = load(path, [f"--{key}={value}" for key, value in options.items()])
    return assess_memory(setting_of(job_of(recipe, parse(program["topology"]))))


def error(program: dict) -> float:
    return of_program(program).memory.peak / program["peak_bytes"] - 1


@pytest.mark.parametrize("programs", [PROGRAMS, ON_GPUS], ids=["tpus", "gpus"])
def test_it_is_what_the_compiler_says(programs):
    """Over all generations, meshes with tensor and expert axes, and policies: 8 % each, 3 % in the median."""
    errors = {f"{p['recipe']} {p['topology']} {p['overrides']}": error(p) for p in programs if p["peak_bytes"]}
    assert len(errors) >= 15
    assert {name: found for name, found in errors.items() if abs(found) > 0.08} == {}
    assert statistics.median(map(abs, errors.values())) < 0.03


def test_what_the_compiler_refused_is_refused():
    kinds = {parse(program["topology"]).generation for program in EVERY}
    assert kinds == {"v5e", "v6e", "v5p", "tpu7x", "a100", "h100", "h200", "b200", "gb200", "l4"}
    refused = [program for program in PROGRAMS if not program["peak_bytes"]]
    assert refused and not any(of_program(program).fits for program in refused)


M = 256  # tokens of a device
TIED = dataclasses.replace(DENSE, tied_embeddings=True)
NORMED = dataclasses.replace(TIED, qk_norm="head")
RESTS = GlobalState((((), 100), (("fsdp",), 1600), (("fsdp", "tensor"), 3200)), ((("fsdp",), 4800),))
KERNEL = 8 * (128 + 2)  # an output in 128 lanes and a float32 of each head


def kept(of) -> float:
    return device_memory(of, RESTS).kinds["kept activations"] / (2 * of.tokens * 3)


def test_the_state_is_divided_by_the_axes_that_split_it_and_so_are_the_tables_and_the_loss():
    of = setting(TIED, fsdp=16, loss_chunks=4)
    found = moments(of)
    assert found["tables"] == {"table": 2 * 2 * TABLE, "gradient of the table": 4 * TABLE, "hidden states": 4 * M * 512}
    untied = moments(dataclasses.replace(of, model=dataclasses.replace(TIED, tied_embeddings=False)))
    assert untied["tables"]["table"] == 2 * 3 * TABLE and untied["loss"] == found["loss"]
    loss = {"table": 2 * TABLE, "gradient of the table": 4 * TABLE, "hidden states": 6 * M * 512}
    assert found["loss"] == loss | {"scores": 4 * M * 1024 / 4}
    half = moments(setting(TIED, fsdp=8, tensor=2, loss_chunks=4))
    assert half["loss"]["table"] == TABLE and half["loss"]["scores"] == 4 * 512 * 512 / 4
    assert device_bytes(RESTS.parameters, (1, 8, 1, 1, 2)) == 100 + 200 + 200
    assert RESTS.total() == 100 + 1600 + 3200 + 4800
    found = device_memory(setting(TIED, fsdp=8, tensor=2), RESTS)
    assert found.kinds["parameters"] == 500 and found.kinds["optimizer"] == 600
    assert found.kinds["cast parameters"] == 2 * 3 * (ATTENTION + MLP) / 16 and found.kinds["program"] == PROGRAM


@pytest.mark.parametrize(
    ("remat", "numbers"),
    [
        ("full", 0),
        ("offload", 0),
        ("save_attention", KERNEL),
        ("save_dots", KERNEL + 1024 + 512 + 2048),
        # The kernel's inputs in 128 lanes, its output once more; inputs of norms and the residual; the MLP's three.
        ("none", KERNEL + (8 + 8) * 128 + 512 + 3 * 512 + 3 * 1024),
    ],
)
def test_what_is_kept_of_a_layer_beside_the_residual_stream(remat, numbers):
    assert kept(with_remat(setting(TIED, fsdp=16), remat)) == 512 + numbers


def test_what_is_kept_of_heads_and_plain_mlps_and_what_tensor_splits():
    of = setting(TIED, fsdp=8, tensor=2)
    assert kept(with_remat(of, "save_attention")) == 512 + KERNEL / 2
    assert kept(with_remat(of, "save_dots")) == 512 + KERNEL / 2 + 512 + 512 + 1024
    assert kept(with_remat(of, "none")) == 512 + KERNEL / 2 + 8 * 128 + 256 + 3 * 512 + 3 * 512
    of = with_remat(setting(NORMED, fsdp=16), "none")
    plain = dataclasses.replace(of, model=dataclasses.replace(NORMED, gated=False))
    assert kept(of) - kept(with_remat(setting(TIED, fsdp=16), "none")) == (8 + 4) * 64
    assert kept(of) - kept(plain) == 1024
    wide = dataclasses.replace(of, model=dataclasses.replace(TIED, head_width=192))
    assert kept(with_remat(wide, "save_attention")) == 512 + 8 * (256 + 2)


def test_what_is_kept_of_experts():
    """Their rows' activations if they are here; of spread experts nothing. The router's scores, and shared ones."""
    here = with_remat(setting(EXPERTS, fsdp=16), "none")
    attention = KERNEL + (8 + 8) * 128 + 512 + 3 * 512 + 512
    assert kept(here) == attention + 2 * (3 * 1024 + 2 * 512) + 8
    away = with_remat(setting(EXPERTS, fsdp=4, expert=4), "none")
    assert kept(away) == attention + 8
    shared = dataclasses.replace(away, model=dataclasses.replace(EXPERTS, shared_experts=2))
    assert kept(shared) == attention + 8 + 2 * 3 * 1024
    dots = with_remat(shared, "save_dots")
    assert kept(dots) == 512 + KERNEL + 1024 + 512 + 2 * 2048 + 8
    split = with_remat(setting(shared.model, fsdp=2, expert=4, tensor=2), "save_dots")
    assert kept(split) == 512 + KERNEL / 2 + 512 + 512 + 2 * 2048 + 8


def moments(of) -> dict[str, dict[str, float]]:
    named = {"tables": "_moment_before_loss", "loss": "_moment_of_loss", "backward": "_moment_of_backward"}
    return {key: getattr(memories, name)(of) for key, name in named.items()}


def test_a_layers_backward_pass_is_its_larger_part_and_that_of_a_mixture():
    of = setting(dataclasses.replace(TIED, mlp_width=8192), fsdp=16, gradient=4)
    found = moments(of)["backward"]
    assert found["gradient of the table"] == 4 * TABLE
    assert found["one layer"] == 2 * M * (3 * 512 + 2 * 512 + 3 * 8192)
    assert found["gathered parameters"] == pytest.approx(8 / 3 * 8 * MLP)
    half = moments(setting(of.model, fsdp=8, tensor=2))["backward"]
    assert half["one layer"] == 2 * 512 * (3 * 512 + 512 + 3 * 4096)

    attention = moments(setting(TIED, rows=512, fsdp=16))["backward"]
    rotated = 4 * 512  # of queries alone, in float32
    assert attention["one layer"] == 2 * 32 * M * (3 * 512 + 4 * 1024 + rotated + 3 * 512 + 2 * 256)
    assert attention["gathered parameters"] == 2 * ATTENTION
    of_one = lambda of: moments(of)["backward"]["one layer"] / 2 / of.tokens  # noqa: E731
    plain = of_one(setting(TIED, rows=512, fsdp=16))
    assert of_one(setting(NORMED, rows=512, fsdp=16)) == plain + 512
    assert of_one(setting(dataclasses.replace(TIED, kv_heads=8), rows=512, fsdp=16)) == plain + 4 * 512 + 2 * 256
    waits = setting(TIED, rows=512, fsdp=16, chip={"offloads_collectives": False})
    assert of_one(waits) == plain - 1024
    split = setting(TIED, rows=512, fsdp=4, data=2, tensor=2)
    assert of_one(split) == 3 * 512 + (4 * 1024 + rotated + 3 * 512 + 2 * 256) / 2
    # Four times the buffers, a quarter larger than the 512 rows; the rows; weights of two experts and gradients.
    of = setting(dataclasses.replace(EXPERTS, tied_embeddings=True), fsdp=4, expert=4)
    found = moments(of)["backward"]
    buffers = 4 * 1.25 * 512 * (512 + 1024) + 512 * 512
    assert found["one layer"] == 2 * (buffers + M * (7 * 512 + 3 * 512))
    assert found["gathered parameters"] == 4 * (2 * MLP + 512 * 8) + 2 * ATTENTION
    split = moments(setting(of.model, fsdp=2, expert=4, tensor=2))["backward"]
    buffers = 4 * 1.25 * 1024 * (512 + 512) + 1024 * 512
    assert split["one layer"] == 2 * (buffers + 512 * (7 * 512 + 3 * 256))
    assert split["gathered parameters"] == 4 * (MLP + 512 * 8) + ATTENTION


def test_the_worst_moment_has_gradients_and_what_is_in_flight():
    state = {"parameters": 1000.0, "optimizer": 2000.0}
    rests = GlobalState((((), 1000),), (((), 2000),))
    wide = dataclasses.replace(TIED, vocabulary_size=1 << 20)
    of = setting(wide, fsdp=16, loss_chunks=1, offloaded=100)
    found = device_memory(of, rests)
    assert found.moment == "loss" and found.kinds["gradients"] == 0
    assert found.kinds["in flight to the host"] == 2 * 100 * M and "from the host" not in found.kinds
    assert device_memory(dataclasses.replace(of, accumulation=2), rests).kinds["gradients"] == 1000
    assert device_memory(dataclasses.replace(of, loss_chunks=256), rests).moment == "gather of the tables"
    found = device_memory(setting(TIED, rows=512, fsdp=16, offloaded=100), rests)
    assert found.moment == "backward pass" and found.kinds["from the host"] == 4 * 100 * 32 * M
    assert found.kinds["gradients"] == 1000 and found.kinds | state == found.kinds
    split = device_memory(setting(TIED, rows=512, fsdp=8, tensor=2, offloaded=100), rests)
    assert split.kinds["from the host"] == 4 * 100 * 32 * M
    assert device_memory(setting(TIED, rows=512, fsdp=16, accumulation=2), rests).kinds["gradients"] == 2000


def test_on_gpus():
    """No lanes; logits' gradients in memory; sums of a chunk beside those of all; two layers at once."""
    of = dataclasses.replace(setting(TIED, fsdp=16, loss_chunks=4), topology=parse("h100:2x8"))
    assert kept(with_remat(of, "save_attention")) == 512 + 8 * (64 + 2)
    loss = {"table": 2 * TABLE, "hidden states": 6 * M * 512}
    assert moments(of)["loss"] == loss | {"gradient of the table": 8 * TABLE, "scores": 2 * M * 1024 / 4}
    plain = {"gradient of the table": 4 * TABLE}
    whole = dataclasses.replace(of, loss_chunks=1)
    assert moments(whole)["loss"] == loss | plain | {"scores": 6 * M * 1024}
    many = dataclasses.replace(of, rows=64 * of.rows)
    assert moments(many)["loss"]["scores"] == 6 * 64 * M * 1024 / 4 > 4 * TABLE
    two = dataclasses.replace(of, rows=2 * of.rows, accumulation=2)  # the gradient of the micro-batch before
    assert moments(two)["loss"]["gradient of the table"] == 12 * TABLE
    assert moments(dataclasses.replace(two, loss_chunks=1))["loss"]["gradient of the table"] == 8 * TABLE
    assert moments(dataclasses.replace(two, sizes=(16, 1, 1, 1, 1)))["loss"]["gradient of the table"] == 8 * TABLE
    busy = dataclasses.replace(of, rows=2 * 32 * of.rows, accumulation=2)
    found, before = (device_memory(one, RESTS) for one in (busy, dataclasses.replace(busy, accumulation=1)))
    assert found.moment == before.moment == "backward pass"
    parameters = device_bytes(RESTS.parameters, busy.sizes)
    assert found.kinds["gradients"] == 3 * parameters and before.kinds["gradients"] == parameters
    assert found.kinds["next layer"] == 2 * (ATTENTION + MLP)
    alone = dataclasses.replace(setting(TIED, rows=512), topology=parse("h100:1"))
    assert "next layer" not in device_memory(alone, RESTS).kinds
