"""How arrays lie in memory, where the compiler's own choice is slower."""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from tpullm.model.platform import target


def row_major_on_cpu(x: jax.Array) -> jax.Array:
    """`x` as it is, with its last dimension contiguous in memory; elsewhere than on a CPU the compiler chooses.

    XLA would leave a transposed array where it is and give the product a slower form: see `linear.matmul`.
    """
    if target() != "cpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def barrier_on_tpu(x):
    """Arrays that are computed once and written: on a TPU, a product would compute them anew for each of its tiles.

    By the compiler's estimates the products around the activation of 7 B parameters took 1.5 times as long (v5e).
    """
    return jax.lax.optimization_barrier(x) if target() == "tpu" else x
