"""Choices that depend on the platform, each with the measurement that decided it.

Among them are types, unrolling, and layouts and optimization barriers where the compiler's own choice is slower.
Matmuls are in bfloat16 on every device, unless `model.matmuls` says fp8.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from tpullm.hardware.chips import of_kind
from tpullm.model.mesh import abstract_device

LANES = 16  # numbers in a vector of `cpu_code`; so many outputs are a tile of `packed`


def target_platform() -> str:
    """The platform of the current mesh (`cpu`, `gpu`, `tpu`), which this machine need not have."""
    return abstract_device().platform if abstract_device() is not None else jax.default_backend()


def compute_dtype(choice: str) -> jnp.dtype:
    """The type of matmuls for `auto`, `float32` or `bfloat16`.

    bfloat16 is the choice for a CPU too: 2048-wide matmuls on two Zen cores ran at 400 GFLOP/s, and at 200 in float32;
    with AMX bfloat16 was 5 times faster.
    """
    return jnp.dtype("bfloat16" if choice == "auto" else choice)


def matmul_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The output type of a matmul of two arrays in `dtype`, before the cast to `dtype`; and that of cached keys.

    float32 for JAX 0.10 on a CPU, whose matmul library has no other: 4,096 x 384 by 384 x 1,024 in bfloat16 ran at 187
    GFLOP/s to bfloat16 and at 345 to float32. JAX 0.12 has both, and float32 costs it 5 % of the quickstart's step.
    Cached keys and values in bfloat16 would be converted for every token.
    """
    return jnp.dtype("float32") if is_older_cpu() else dtype


def is_older_cpu() -> bool:
    """Whether a CPU computes with JAX 0.10, whose compiler is another one."""
    return target_platform() == "cpu" and tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11)


def unrolled_layers(layers: int) -> int:
    """How many layers a scan unrolls. A CPU loses a third to slicing stacked weights; a TPU compiles a scan faster."""
    return layers if target_platform() == "cpu" and layers <= 12 else 1


def long_step_seconds() -> float:
    """Seconds of a step after which the next one is dispatched only when it is done.

    A CPU takes the memory of a step when it is dispatched, so two took 1.8 GiB in place of 1.2 (LoRA of 12 M
    parameters, steps of 1 s); what it loses by waiting is 2 to 5 ms a step.
    """
    return 0.25 if target_platform() == "cpu" else 1.0


def decodes_separate_layers() -> bool:
    """Whether decoding has each layer's parameters as arrays of their own, a copy of all of them.

    A CPU would copy a layer's parameters for every token. A TPU reads them where they stand: of 4 layers of an 8 B
    model on one v6e, that takes 1.6 GiB less, and 4 % more cycles. A GPU is as a CPU until it is measured.
    """
    return target_platform() != "tpu"


def is_one_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether a mesh is a single CPU, whose programs may share and reorder the memory of arrays."""
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def layers_per_program(layers: int) -> int:
    """How many layers one program of the engine has: a few on a CPU, where all parts that are alike then share it.

    30 layers of width 576, JAX 0.12, two cores, 8 rows: with programs of one layer a step takes 34 ms, with programs of
    five 26; to compile one takes 0.2 and 0.5 s of processor time, and a program of all 3.9. A loop over stacked layers
    copies the parameters of each.
    """
    return next((few for few in (6, 5, 4, 3) if layers % few == 0), 5) if target_platform() == "cpu" else layers


# With XLA's defaults, all-gathers and reduce-scatters block a v6e and a v5p (reduce-scatters alone a v5e). These two
# generations have SparseCores, which can run them during matmuls.
_ON_SPARSE_CORES = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "false",
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "false",
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_disable_megacore_partitioning": "true",
}


def compiler_options(own: Mapping[str, str] = MappingProxyType({})) -> dict[str, str | int]:
    """XLA's options for the devices of the current mesh, beyond its defaults.

    Args:
        own: of the recipe, which win. Those of another platform are left out: a recipe is tried on a CPU first.
    """
    platform, found = target_platform(), {}
    if platform == "gpu":
        # With XLA's defaults for GPUs, collectives of 8 B on eight H100 are exposed for 37 ms of a step, with this for
        # 4. It is XLA's `EFFORT_O1`; JAX 0.10 does not know the name.
        found = {"optimization_level": 19}
    elif abstract_device() is not None and of_kind(abstract_device().device_kind).offloads_collectives:
        found = _ON_SPARSE_CORES
    prefixes = {"cpu": ("xla_cpu_",), "gpu": ("xla_gpu_",), "tpu": ("xla_tpu_", "xla_sc_")}
    others = tuple(itertools.chain(*(of for name, of in prefixes.items() if name != platform)))
    own = {name: value for name, value in own.items() if not name.startswith(others)}
    if platform != "tpu":  # whose options are texts; of others JAX sets fields of a type
        own = {name: {"true": True, "false": False}.get(value, value) for name, value in own.items()}
    return found | own


def row_major(x: jax.Array) -> jax.Array:
    """`x` with its dimensions in memory in their logical order, the last one contiguous."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def row_major_on_cpu(x: jax.Array) -> jax.Array:
    """The same on a CPU; elsewhere the compiler chooses.

    XLA would otherwise not move a transposed array and use a slower form of the matmul: see `linear.matmul`.
    """
    return row_major(x) if target_platform() == "cpu" else x


def barrier_on_tpu(x):
    """An optimization barrier on a TPU: the arrays are written to memory and not fused into the matmuls that use them.

    A matmul recomputes a fused input for each of its tiles. By the compiler's estimates the matmuls around the
    activation of 7 B parameters took 1.5 times as long (v5e).
    """
    return jax.lax.optimization_barrier(x) if target_platform() == "tpu" else x


def barrier_on_gpu(x):
    """An optimization barrier on a GPU: what uses one of the arrays is computed after all of them.

    XLA for GPUs would otherwise put off the gradients of weights, whose inputs stay in memory for so long: a step of 1
    billion parameters with 32,768 tokens a device held those of two layers (12.0 GiB by the compiler in place of 9.0).
    """
    return jax.lax.optimization_barrier(x) if target_platform() == "gpu" else x
