"""Adafactor: the second moment of a matrix as the product of one number per row and one per column.

Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (arXiv 1804.04235), algorithms 4
and 5, with an absolute learning rate (not relative to a parameter's size, section 8) and without a first moment.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpullm.model.architecture import is_matrix, own, sides

Tree = Any
# The paper's values (section 9): added to squares; the largest root mean square of an update; exponent of the decay.
EPSILON, LONGEST, EXPONENT = 1e-30, 1.0, 0.8


class FactoredState(NamedTuple):
    """The state of Adafactor, float32.

    `rows`: of a matrix, the mean of its squares over outputs, `[*stacked, *inputs, 1, ...]`; of other parameters the
    whole second moment. `columns`: of a matrix, the mean over inputs, `[*stacked, 1, ..., *outputs]`. A reduced
    dimension stays, with size 1, so that the others are sharded as the parameter's are (`state.abstract`).
    """

    count: jax.Array
    rows: Tree
    columns: Tree


def scale_by_factored_moments(axes: Tree) -> optax.GradientTransformation:
    """Gradients over the root of their factored second moment, the root mean square of each matrix clipped to 1.

    Args:
        axes: logical axes of every parameter; each stacked layer and expert is a matrix of its own.
    """

    def init(params: Tree) -> FactoredState:
        rows = jax.tree.map(lambda p, names: _zeros(p, sides(names)[1] if is_matrix(names) else ()), params, axes)
        columns = jax.tree.map(
            lambda p, names: _zeros(p, sides(names)[0]) if is_matrix(names) else optax.MaskedNode(), params, axes
        )
        return FactoredState(jnp.zeros((), jnp.int32), rows, columns)

    def update(grads: Tree, state: FactoredState, params: Tree = None) -> tuple[Tree, FactoredState]:
        count = optax.safe_increment(state.count)
        decay = 1 - count.astype(jnp.float32) ** -EXPONENT  # 0 in the first step: no bias to correct (section 7.2)
        tree = jax.tree.structure(grads)
        each = zip(*map(tree.flatten_up_to, (grads, state.rows, state.columns, axes)), strict=True)
        updates, rows, columns = map(tree.unflatten, zip(*(_scaled(decay, *of) for of in each), strict=True))
        return updates, FactoredState(count, rows, columns)

    return optax.GradientTransformation(init, update)


def _zeros(parameter: jax.Array, reduced: tuple[int, ...]) -> jax.Array:
    """Zeros of the shape, and on an explicit mesh of the sharding, of a mean over the dimensions `reduced`."""
    return jnp.zeros_like(jax.eval_shape(lambda p: jnp.mean(p, reduced, keepdims=True), parameter))


def _scaled(decay: jax.Array, grad: jax.Array, rows: jax.Array, columns, axes: tuple[str, ...]):
    """One parameter's update, and its new moments."""
    square = jnp.square(grad) + EPSILON
    if is_matrix(axes):
        inputs, outputs = sides(axes)
        rows = decay * rows + (1 - decay) * jnp.mean(square, outputs, keepdims=True)
        columns = decay * columns + (1 - decay) * jnp.mean(square, inputs, keepdims=True)
        relative = rows / jnp.mean(rows, inputs, keepdims=True)
        update = grad * jax.lax.rsqrt(relative) * jax.lax.rsqrt(columns)
    else:
        rows = decay * rows + (1 - decay) * square
        update = grad * jax.lax.rsqrt(rows)
    # The clip of algorithm 4, for each layer and each expert.
    length = jnp.sqrt(jnp.mean(jnp.square(update), own(axes), keepdims=True))
    return update / jnp.maximum(1.0, length / LONGEST), rows, columns
