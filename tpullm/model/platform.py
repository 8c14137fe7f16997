"""What depends on the machine, chosen in one place, each with the measurement that decided it."""

import jax
import jax.numpy as jnp

from tpullm.hardware.chips import of_kind
from tpullm.mesh.layout import abstract_device


def target() -> str:
    """The platform that is computed for (`cpu`, `gpu`, `tpu`): that of the mesh, which may be of devices not here."""
    return abstract_device().platform if abstract_device() is not None else jax.default_backend()


def compute_dtype(choice: str) -> jnp.dtype:
    """The type of products for `auto`, `float32` or `bfloat16`.

    bfloat16 is for a CPU too: 2048-wide products on two Zen cores ran at 400 GFLOP/s, and at 200 in float32; with AMX
    bfloat16 was 5 times faster.
    """
    return jnp.dtype("bfloat16" if choice == "auto" else choice)


def matmul_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type that a product of two arrays in `dtype` comes in before it is made `dtype`.

    float32 for JAX 0.10 on a CPU, whose library of products only has that: 4,096 x 384 by 384 x 1,024 in bfloat16 ran
    at 187 GFLOP/s to bfloat16 and at 345 to float32. JAX 0.12 has both, and float32 costs it 5 % of the quickstart's
    step.
    """
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    return jnp.dtype("float32") if target() == "cpu" and version < (0, 11) else dtype


def cache_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type of cached keys and values: float32 on a CPU, which would convert all of them for every token."""
    return jnp.dtype("float32") if target() == "cpu" else dtype


def unrolled(layers: int) -> int:
    """How many layers a scan unrolls. A CPU loses a third to slicing stacked weights; a TPU compiles faster scanned."""
    return layers if target() == "cpu" and layers <= 12 else 1


# With XLA's defaults a v6e and a v5p stop for gathers and scatters (a v5e for scatters alone). These generations have
# small cores of another kind, which can do them meanwhile.
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


def compiler_options() -> dict[str, str]:
    """What XLA is told beyond its defaults for the devices that are computed for."""
    offloads = abstract_device() is not None and of_kind(abstract_device().device_kind).offloads_collectives
    return _ON_SPARSE_CORES if offloads else {}
