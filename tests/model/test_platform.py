"""What depends on the platform follows from the devices of the mesh, also of devices that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice

from tpullm.model import platform
from tpullm.model.mesh import planned_mesh
from tpullm.model.platform import barrier_on_tpu, row_major_on_cpu


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def on(request):
    with jax.sharding.use_abstract_mesh(planned_mesh({}, 1, AbstractDevice("TPU v5", 1, request.param))):
        yield request.param


def test_the_target_is_the_platform_of_the_mesh(on):
    assert platform.target_platform() == on


def test_auto_is_bfloat16_everywhere(on):
    choices = "auto", "float32", "bfloat16"
    assert [platform.compute_dtype(choice).name for choice in choices] == ["bfloat16", "float32", "bfloat16"]


@pytest.mark.parametrize(("version", "cpu"), [("0.10.2", "float32"), ("0.11.0", "bfloat16"), ("1.0.0", "bfloat16")])
def test_only_an_old_jax_on_a_cpu_multiplies_to_and_caches_in_float32(on, version, cpu, monkeypatch):
    monkeypatch.setattr(jax, "__version__", version)
    assert platform.matmul_dtype(jnp.dtype("bfloat16")) == (cpu if on == "cpu" else "bfloat16")
    assert platform.matmul_dtype(jnp.dtype("float32")) == "float32"


def test_only_a_cpu_unrolls_layers(on):
    assert [platform.unrolled_layers(layers) for layers in (1, 12, 13)] == ([1, 12, 1] if on == "cpu" else [1, 1, 1])


def test_jax_takes_the_options_for_a_gpu():
    with jax.sharding.use_abstract_mesh(planned_mesh({}, 1, AbstractDevice("NVIDIA H200", 1, "gpu"))):
        options = platform.compiler_options()
    assert list(options) == ["optimization_level"]
    jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile(compiler_options=options)  # a CPU's compiler takes it too


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_collectives_run_on_the_sparse_cores_of_generations_that_have_them(kind):
    with jax.sharding.use_abstract_mesh(planned_mesh({}, 1, AbstractDevice(kind, 1, "tpu"))):
        options = platform.compiler_options()
    assert bool(options) == (kind != "TPU v5 lite")
    # What a SparseCore runs, a matmul must not be fused with.
    for of in ("all_gather", "all_reduce", "reduce_scatter") if options else ():
        assert options[f"xla_tpu_enable_sparse_core_collective_offload_{of}"] == "true"
        assert options[f"xla_tpu_enable_async_collective_fusion_fuse_{of}"] == "false"


def test_options_of_a_recipe_win_and_those_of_other_platforms_are_left_out(on):
    own = {f"xla_{name}_x": "1" for name in ("cpu", "gpu", "tpu")} | {"xla_sc_x": "1", "optimization_level": "0"}
    found = platform.compiler_options(own)
    names = {"cpu": {"xla_cpu_x"}, "gpu": {"xla_gpu_x"}, "tpu": {"xla_tpu_x", "xla_sc_x"}}[on]
    assert {name for name in found if name.endswith("_x")} == names and found["optimization_level"] == "0"


def test_barriers_are_for_a_tpu_and_layouts_for_a_cpu(on):
    """The last dimension is contiguous: the layout lists the dimensions from the outermost to the innermost."""
    x = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    barrier = str(jax.make_jaxpr(lambda *x: barrier_on_tpu(x))(x, x))
    layout = str(jax.make_jaxpr(row_major_on_cpu)(x))
    assert ("optimization_barrier" in barrier) == (on == "tpu")
    assert ("layout_constraint" in layout) == (on == "cpu")
    assert on != "cpu" or "(0, 1, 2)" in layout
