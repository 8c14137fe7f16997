"""A grouped matmul: rows sorted by group, each times the matrix of its group.

Shapes: M rows, D and F input and output width, E groups.
"""

import jax

from tpullm.model.platform import matmul_dtype, target_platform


def grouped_kernel() -> str:
    """The kernel of grouped matmuls: `triton` on a GPU, `ragged_dot`, which is XLA's own, elsewhere.

    XLA for a TPU has a kernel, for the product and both gradients, that masks by row and neither reads nor writes rows
    beyond the groups (libtpu 0.0.50). XLA for a CPU and for a GPU multiplies each row with every matrix and masks. On a
    CPU 2,048 rows of 384 by 512 took 4 ms with one matrix, 34 with 8 and 181 with 32, and E times the memory of the
    rows. What a GPU lost is in docs/design/gpu-programs.md.
    """
    return "triton" if target_platform() == "gpu" else "ragged_dot"


def grouped_matmul(x_MD: jax.Array, weight_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Each row times the matrix of its group, `[M, F]` in the type of `x`.

    Rows beyond the groups are undefined, in the result and in the gradient of `x`.

    Args:
        sizes_E: rows of each group, int32; their sum is at most M.
    """
    if grouped_kernel() == "triton":
        from tpullm.model.experts.triton import triton_grouped_matmul  # imports Pallas

        return triton_grouped_matmul(x_MD, weight_EDF, sizes_E)
    dtype = matmul_dtype(x_MD.dtype)
    return jax.lax.ragged_dot(x_MD, weight_EDF, sizes_E, preferred_element_type=dtype).astype(x_MD.dtype)
