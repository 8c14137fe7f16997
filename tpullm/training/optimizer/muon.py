"""Muon: the momentum of a hidden matrix with its singular values made (nearly) equal.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scaled as in Liu et al. 2025, "Muon is
scalable for LLM training" (arXiv 2502.16982, section 2.2), so that an update is as long as AdamW's and its learning
rates and decay carry over.

Shapes: B stacked matrices (layers, experts), I inputs, O outputs.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from tpullm.mesh.layout import RULES
from tpullm.model.linear import einsum
from tpullm.training.optimizer.matrices import own, sides

Tree = Any
# Five steps of the odd polynomial a s + b s^3 + c s^5 (Jordan's) take singular values of 0.01 to 1 into 0.68 to 1.13.
COEFFICIENTS, STEPS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7
# The root mean square of AdamW's updates, as measured by Liu et al.
LENGTH = 0.2


class MuonState(NamedTuple):
    """The running mean of gradients, shaped and laid out as the parameters."""

    momentum: Tree


def scale_by_muon(momentum: float, axes: Tree, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Gradients of matrices to orthogonalized Nesterov momentum.

    Args:
        momentum: decay of the running mean.
        axes: logical axes of every matrix.
        dtype: type of the products. bfloat16 (Jordan's) moves half the bytes; float32 is for a training in float32,
            since the polynomial's slope at 0, 3.4445^5 = 485, makes roundings of small singular values larger.
    """

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return momentum * old + (1 - momentum) * new

    def init(params: Tree) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Tree, state: MuonState, params: Tree = None) -> tuple[Tree, MuonState]:
        kept = jax.tree.map(mean, state.momentum, grads)
        ahead = jax.tree.map(mean, kept, grads)  # Nesterov's
        return jax.tree.map(lambda x, names: _steepest(x, names, dtype), ahead, axes), MuonState(kept)

    return optax.GradientTransformation(init, update)


def _steepest(x: jax.Array, axes: tuple[str, ...], dtype: jnp.dtype) -> jax.Array:
    """The orthogonalized matrices of one parameter, of its shape and layout, in its type, as long as AdamW's updates.

    Whole matrices are spread over the devices of a slice, each is computed on one of them, and the result goes back. On
    `data`, which joins slices, every slice computes the same: that costs as much of a slice's time whatever their
    number, and nothing goes over the slow network between them.
    """
    inputs, outputs = sides(axes)
    count = math.prod(x.shape[: own(axes)[0]])
    sizes = tuple(math.prod(x.shape[n] for n in side) for side in (inputs, outputs))
    split = RULES.spec(*axes)
    first, moves = _moves(count, split[inputs[0]], split[outputs[0]])
    # Only the first dimension of a side may be split, or its dimensions could not be made one.
    apart = PartitionSpec(*(split[n] if n in (inputs[0], outputs[0]) else None for n in range(x.ndim)))
    y_BIO = jnp.reshape(jax.reshard(x.astype(dtype), apart), (count, *sizes), out_sharding=first)
    y_BIO = jnp.pad(y_BIO, ((0, -count % _parts(moves[-1][0])), (0, 0), (0, 0)))
    for spec in moves:
        y_BIO = jax.reshard(y_BIO, spec)
    y_BIO = orthogonalized(y_BIO)
    for spec in (*moves[-2::-1], first):
        y_BIO = jax.reshard(y_BIO, spec)
    y = jnp.reshape(y_BIO[:count], x.shape, out_sharding=apart)
    return jax.reshard(y, split).astype(x.dtype) * (LENGTH * max(sizes) ** 0.5)


def _moves(count: int, rows, columns) -> tuple[PartitionSpec, list[PartitionSpec]]:
    """The layout of `[B, I, O]` as the parameter has it, and those from there to whole matrices.

    One axis at a time: each move is an all-to-all then. In one step XLA gathers all matrices on every device (JAX 0.12
    says so: "involuntary full rematerialization").

    Args:
        count: B; where that is more than the devices which hold a matrix, they share it with the others of the slice.
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
    """Each matrix with its singular values near 1, in its type: Newton and Schulz's iteration, `STEPS` times.

    A matrix of zeros stays one.
    """
    if x_BIO.shape[1] > x_BIO.shape[2]:  # the products of the shorter side are the smaller ones
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
