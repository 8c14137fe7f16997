"""A training that does not fit its mesh is refused in one line, with sizes that do."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractDevice

from tests.training.small import ARCHITECTURE, SPREAD
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import planned_mesh
from tpullm.model.mesh_fit import KEYS, check_adapter, check_fits, nearest_sizes
from tpullm.recipe.mesh_axes import AXES
from tpullm.recipe.schema import AdapterConfig, TrainConfig
from tpullm.system.errors import UserError


def refused(make) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def fits(mesh, stage="pretrain", sizes_given=False, **settings):
    """`check_fits` for `SPREAD` (4 heads, 2 of keys, width 32, 8 experts of width 16, context 32) and settings."""
    keys = ("batch_size", "accumulation", "sequence_length", "loss_chunks")
    training = {key: settings.pop(key) for key in keys if key in settings}
    architecture = Architecture(dataclasses.replace(SPREAD.config, **settings))
    config = TrainConfig(**{"batch_size": 16, "sequence_length": 32} | training)
    check_fits(architecture, config, 96, mesh, stage, sizes_given)


OF_A_BATCH = {"data": 2, "fsdp": 2, "expert": 2}
ROWS = "rows (batch_size / accumulation)"


@pytest.mark.parametrize(
    ("shape", "settings", "size", "told"),
    [
        ({"tensor": 3}, {}, "model.heads: 4", "mesh.tensor 2, or model"),
        ({"tensor": 4}, {}, "model.kv_heads: 2", "mesh.tensor 2, or model.kv_heads 4"),
        ({"tensor": 2}, {"kv_heads": 1}, "model.kv_heads: 1", "mesh.tensor 1, or model.kv_heads 2"),
        ({"tensor": 2}, {"mlp_width": 17}, "model.mlp_width: 17", "mesh.tensor 1, or model.mlp_width 16 or 18"),
        ({"tensor": 2}, {"vocabulary_size": 97}, "model.vocabulary_size: 97", "mesh.tensor 1, or model.vocabulary_siz"),
        ({"fsdp": 16}, {"width": 40}, "model.width: 40", "mesh.fsdp 10 or 20, or model.width 32 or 48"),
        ({"expert": 4}, {"experts": 6}, "model.experts: 6", "mesh.expert 3 or 6, or model.experts 4 or 8"),
        ({"expert": 8}, {"experts": 5}, "model.experts: 5", "mesh.expert 5, or model.experts 8"),
        ({"fsdp": 3}, {}, f"pretrain.batch_size: 16 {ROWS}", "batch_size 15 or 18, or mesh.fsdp 2 or 4"),
        (OF_A_BATCH, {"accumulation": 4}, f"4 {ROWS}", "batch_size 32, accumulation 2, or mesh.data"),
        ({"sequence": 3}, {}, "32 tokens, in 2 chunks a device,", "sequence_length 30, or mesh.sequence 2 or 4"),
        (
            {"sequence": 2},
            {"sequence_length": 30},
            "in 2 chunks a device,",
            "sequence_length 28 or 32, or mesh.sequence 1 ",
        ),
    ],
)
def test_a_size_that_the_mesh_cannot_share_is_one_line_with_sizes_that_can(shape, settings, size, told):
    devices = math.prod(shape.values())
    along = " x ".join(f"mesh.{axis}" for axis in shape)
    said = refused(lambda: fits(planned_mesh(shape, devices), **settings))
    assert f"{size} can't be shared by {devices} devices along {along}; use {told}" in said


def test_the_sizes_that_are_told_do_fit():
    for shape in ({"tensor": 2}, {"fsdp": 2}, {"fsdp": 4, "sequence": 4}, {"data": 2, "expert": 8}):
        fits(planned_mesh(shape, math.prod(shape.values())))
    fits(planned_mesh({"sequence": 1}, 1), sequence_length=31)  # whole rows can have any length
    fits(planned_mesh({"expert": 4}, 4), experts=0, shared_experts=0, balance_loss=0.0, balance_rate=0.0)


def test_what_is_given_is_not_told_to_be_changed():
    message = refused(lambda: fits(planned_mesh({"tensor": 4}, 4), sizes_given=True))
    assert message.endswith("along mesh.tensor; use mesh.tensor 2")
    message = refused(lambda: fits(planned_mesh({"fsdp": 3}, 3), stage="finetune.talk.train"))
    assert message.startswith("finetune.talk.train.batch_size: 16 rows")


def test_devices_that_are_here_are_as_many_as_they_are():
    """Six experts fit 3 and 6 devices, but of 4 devices only 1 and 2 can be along an axis."""
    shape, kind = planned_mesh({"expert": 4}, 4).shape, SimpleNamespace(abstract_device=None)
    mesh = SimpleNamespace(shape=shape, size=4, axis_names=AXES, abstract_mesh=kind)
    assert "use mesh.expert 2, or model.experts 4 or 8" in refused(lambda: fits(mesh, experts=6))


@pytest.mark.parametrize("architecture", [ARCHITECTURE, SPREAD])
def test_every_dimension_of_a_parameter_has_its_key(architecture):
    leaves = jax.tree.leaves(architecture.axes, is_leaf=lambda node: isinstance(node, tuple))
    shapes = [leaf.shape for leaf in jax.tree.leaves(architecture.shapes)]
    config = architecture.config
    shared = config.shared_experts * config.mlp_width  # shared experts are one MLP that many times as wide
    for axes, shape in zip(leaves, shapes, strict=True):
        for axis, size in zip(axes, shape, strict=True):
            assert size in (getattr(config, KEYS[axis]), shared if axis == "mlp" else None)


def test_a_width_that_heads_fill_stays_one_of_whole_heads_of_even_width():
    """32 is 4 heads of 8: 30 and 33 are the nearest multiples of 3, but 4 heads need a multiple of 8."""
    message = refused(lambda: fits(planned_mesh({"fsdp": 3}, 3), batch_size=48))
    assert message.startswith("model.width: 32 can't") and message.endswith("or model.width 24 or 48")
    message = refused(lambda: fits(planned_mesh({"fsdp": 3}, 3), batch_size=48, head_width=16))
    assert message.endswith("or model.width 30 or 33")


@pytest.mark.parametrize(
    ("devices", "chunks", "told"), [(1, 5, "32 tokens of a row that a device has; use 4 or 8"), (2, 32, "16 tokens of")]
)
def test_chunks_of_the_loss_divide_what_a_device_has_of_a_row(devices, chunks, told):
    mesh = planned_mesh({"sequence": devices}, devices)
    message = refused(lambda: fits(mesh, loss_chunks=chunks))
    assert message.startswith(f"pretrain.loss_chunks: {chunks} does not divide the {told}")
    fits(mesh, loss_chunks=16)


@pytest.mark.parametrize(("kind", "most"), [("TPU v5 lite", 1024), ("TPU v5", 1024), ("TPU v6 lite", 2048)])
def test_a_block_of_attention_fits_the_memory_on_the_chip(kind, most):
    mesh = planned_mesh({}, 1, AbstractDevice(kind, 1, "tpu"))
    fits(mesh, attention_block=most)
    if most < 2048:
        assert refused(lambda: fits(mesh, attention_block=2048)).endswith(f"of a {kind}; use {most} or less")
    fits(planned_mesh({}, 1, AbstractDevice("a GPU", 1, "gpu")), attention_block=2048)


def test_a_vocabulary_and_a_row_that_the_model_does_not_hold_are_refused():
    mesh = planned_mesh({}, 1)
    fits(mesh, vocabulary_size=96), fits(mesh, sequence_length=32)
    message = refused(lambda: fits(mesh, vocabulary_size=95))
    assert message == "model.vocabulary_size: 95 is smaller than the tokenizer's 96; set it to 0"
    message = refused(lambda: fits(mesh, stage="finetune.talk.train", sequence_length=33))
    assert message.startswith("finetune.talk.train.sequence_length: 33 tokens") and message.endswith("use 32 or less")


@pytest.mark.parametrize(
    ("mesh", "kind", "sizes", "message"),
    [
        ({"fsdp": 2}, "nf4", {"width": 128}, ""),
        ({"fsdp": 4}, "nf4", {"width": 128}, "32 inputs a device"),
        ({"tensor": 2}, "int8", {"mlp_width": 64}, "mesh.tensor 1"),
        ({"tensor": 2}, "int8", {"mlp_width": 128}, ""),
        ({"fsdp": 1}, "nf4", {"mlp_width": 63}, "nf4 has two codes in a byte, and a matrix here has 63 inputs"),
        ({"fsdp": 1}, "fp8", {"mlp_width": 63}, ""),
    ],
)
def test_a_device_has_whole_blocks_of_a_quantized_base(mesh, kind, sizes, message):
    model = dataclasses.replace(ARCHITECTURE.config, **{"width": 64, "mlp_width": 128} | sizes)
    architecture = Architecture(model, AdapterConfig(rank=2, quantize_base=kind))
    check = lambda: check_adapter(architecture, planned_mesh(mesh, math.prod(mesh.values())), "finetune.a.adapter")  # noqa: E731
    if not message:
        return check()
    told = refused(check)
    assert told.startswith("finetune.a.adapter.quantize_base: ") and message in told


@pytest.mark.parametrize("size", [1, 7, 12, 30])
def test_the_nearest_sizes_are_the_nearest_that_fit(size):
    for divisor, most in ((3, 5), (5, 2), (13, 13)):
        fitting = [other for other in range(1, size + most + 1) if other % divisor == 0 and other != size]
        smaller, larger = ([other for other in fitting if of(other)] for of in (lambda n: n < size, lambda n: n > size))
        assert nearest_sizes(size, lambda other, d=divisor: other % d == 0, most) == " or ".join(
            str(other) for other in (*smaller[-1:], *larger[:1])
        )
