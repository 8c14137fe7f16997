"""Layouts in memory and optimization barriers, where the compiler's own choice is slower."""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from tpullm.model.platform import target


def row_major_on_cpu(x: jax.Array) -> jax.Array:
    """`x` with its last dimension contiguous in memory, on a CPU; elsewhere the compiler chooses.

    XLA would otherwise not move a transposed array and use a slower form of the matmul: see `linear.matmul`.
    """
    if target() != "cpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def barrier_on_tpu(x):
    """An optimization barrier on a TPU: the arrays are written to memory and not fused into the matmuls that use them.

    A matmul recomputes a fused input for each of its tiles. By the compiler's estimates the matmuls around the
    activation of 7 B parameters took 1.5 times as long (v5e).
    """
    return jax.lax.optimization_barrier(x) if target() == "tpu" else x


def barrier_on_gpu(x):
    """An optimization barrier on a GPU: what uses one of the arrays is computed after all of them.

    XLA for GPUs would otherwise put off the gradients of weights, whose inputs stay in memory for so long: a step of 1
    billion parameters with 32,768 tokens a device held those of two layers (12.0 GiB by the compiler in place of 9.0).
    """
    return jax.lax.optimization_barrier(x) if target() == "gpu" else x
