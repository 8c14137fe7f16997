"""Muon: the momentum of a hidden matrix, orthogonalized (all singular values near 1).

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scaled as in Liu et al. 2025, "Muon is
scalable for LLM training" (arXiv 2502.16982, section 2.2): updates have the root mean square of AdamW's, so learning
rates and weight decay carry over.

Muon needs whole matrices. Stacked matrices are split over the devices of a slice, one mesh axis at a time (an
all-to-all each; in one step, XLA would all-gather every matrix on every device), and the updates go back.

Shapes: B stacked matrices (layers, experts), I inputs, O outputs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from tpullm.model.architecture import Tree, matrix_sides, unstacked_dimensions
from tpullm.model.linear import einsum
from tpullm.model.mesh import RULES

# Five steps of the odd polynomial a s + b s^3 + c s^5 (Jordan's) take singular values of 0.01 to 1 into 0.68 to 1.13.
COEFFICIENTS, STEPS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7
# The root mean square of AdamW's updates, as measured by Liu et al.
UPDATE_RMS = 0.2


class MuonState(NamedTuple):
    """The running mean of gradients, shaped and sharded as the parameters."""

    momentum: Tree


def scale_by_muon(momentum: float, axes: Tree, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Gradients of matrices to orthogonalized Nesterov momentum.

    Args:
        momentum: decay of the running mean.
        axes: logical axes of every matrix.
        dtype: type of the matmuls. bfloat16 (Jordan's) moves half the bytes. Training in float32 uses float32, since
            the polynomial's slope at 0, 3.4445^5 = 485, amplifies roundings of small singular values.
    """

    mean = lambda old, new: momentum * old + (1 - momentum) * new  # noqa: E731

    def init(params: Tree) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Tree, state: MuonState, params: Tree = None) -> tuple[Tree, MuonState]:
        kept = jax.tree.map(mean, state.momentum, grads)
        ahead = jax.tree.map(mean, kept, grads)  # Nesterov's
        return jax.tree.map(lambda x, names: _muon_update(x, names, dtype), ahead, axes), MuonState(kept)

    return optax.GradientTransformation(init, update)


def _muon_update(x: jax.Array, axes: tuple[str, ...], dtype: jnp.dtype) -> jax.Array:
    """The orthogonalized matrices of one parameter, of its shape, type and sharding, with the scale of AdamW's updates.

    Whole matrices are distributed over the devices of a slice, each is computed on one device, and the result is sent
    back. Along `data`, which connects slices, all slices compute the same: the time is that of one slice, and nothing
    is sent over the slow network between slices.
    """
    inputs, outputs = matrix_sides(axes)
    count = math.prod(x.shape[: unstacked_dimensions(axes)[0]])
    sizes = tuple(math.prod(x.shape[n] for n in side) for side in (inputs, outputs))
    split = RULES.spec(*axes)
    first, moves = _resharding_moves(count, split[inputs[0]], split[outputs[0]])
    # Dimensions of a side can be merged only if none but the first is split.
    apart = PartitionSpec(*(split[n] if n in (inputs[0], outputs[0]) else None for n in range(x.ndim)))
    y_BIO = jnp.reshape(jax.reshard(x.astype(dtype), apart), (count, *sizes), out_sharding=first)
    y_BIO = jnp.pad(y_BIO, ((0, -count % _parts(moves[-1][0])), (0, 0), (0, 0)))
    for spec in moves:
        y_BIO = jax.reshard(y_BIO, spec)
    y_BIO = orthogonalized(y_BIO)
    for spec in (*moves[-2::-1], first):
        y_BIO = jax.reshard(y_BIO, spec)
    y = jnp.reshape(y_BIO[:count], x.shape, out_sharding=apart)
    return jax.reshard(y, split).astype(x.dtype) * (UPDATE_RMS * max(sizes) ** 0.5)


def _resharding_moves(count: int, rows, columns) -> tuple[PartitionSpec, list[PartitionSpec]]:
    """The sharding of `[B, I, O]` as the parameter has it, and the shardings from there to whole matrices.

    One axis at a time, so that each move is an all-to-all. In one step XLA gathers all matrices on every device (JAX
    0.12 warns of an "involuntary full rematerialization").

    Args:
        count: B. While it is larger than the number of parts, more axes of the slice split it.
        rows, columns: mesh axes (or None) that split inputs and outputs.
    """
    rows, columns = ((side,) if isinstance(side, str) else side or () for side in (rows, columns))
    front = (*columns, *rows)
    moves = [PartitionSpec(columns or None, rows or None, None), PartitionSpec(front or None, None, None)]
    for axis in ("expert", "sequence"):
        if axis not in front and count > _parts(front):
            front = (*front, axis)
            moves.append(PartitionSpec(front, None, None))
    return PartitionSpec(None, rows or None, columns or None), moves


def _parts(axes: str | tuple[str, ...] | None) -> int:
    """How many parts these mesh axes make."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def orthogonalized(x_BIO: jax.Array) -> jax.Array:
    """Each matrix with its singular values near 1, in its type: `STEPS` steps of the Newton-Schulz iteration.

    A matrix of zeros stays zero.
    """
    if x_BIO.shape[1] > x_BIO.shape[2]:  # the Gram matrix of the shorter side is the smaller one
        return orthogonalized(x_BIO.swapaxes(1, 2)).swapaxes(1, 2)
    a, b, c = COEFFICIENTS
    dtype, spec = x_BIO.dtype, jax.typeof(x_BIO).sharding
    x_BIO = x_BIO.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(x_BIO), axis=(1, 2), keepdims=True))
    x_BIO = (x_BIO / (norm + EPSILON)).astype(dtype)
    for _ in range(STEPS):
        gram_BII = einsum("bio,bjo->bij", x_BIO, x_BIO, spec)
        factor_BII = b * gram_BII + c * einsum("bij,bjk->bik", gram_BII, gram_BII, spec)
        x_BIO = a * x_BIO + einsum("bij,bjo->bio", factor_BII, x_BIO, spec)
    return x_BIO
