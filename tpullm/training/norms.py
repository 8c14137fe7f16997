"""Norms of a tree of parameters by layer: `embedding`, `layer_0.attention`, `layer_0.mlp`, ..., `head`.

Shapes: L layers, G parts of a layer, N named parts of the model.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

KINDS = ("parameter_norms", "gradient_norms", "update_norms")  # in the log


def part_names(params: Tree, layers: int) -> list[str]:
    """The names of the norms, N of them, in the order of `part_norms`: what is not of a layer, then layer by layer."""
    alone = [name for name in sorted(params) if name != "layers"]
    return [*alone, *(f"layer_{layer}.{part}" for layer in range(layers) for part in sorted(params["layers"]))]


def part_norms(tree: Tree) -> jax.Array:
    """The norm of each part, `[N]` float32, of parameters, or of a tree like them. Layers are stacked: `[L, ...]`."""

    def squares(part: Tree, stacked: bool) -> jax.Array:
        def of(leaf: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=tuple(range(stacked, leaf.ndim)))

        return sum(map(of, jax.tree.leaves(part)))

    alone_N = [squares(tree[name], False)[None] for name in sorted(tree) if name != "layers"]
    of_layers_LG = jnp.stack([squares(tree["layers"][part], True) for part in sorted(tree["layers"])], axis=1)
    return jnp.sqrt(jnp.concatenate([*alone_N, of_layers_LG.reshape(-1)]))


def step_norms(params: Tree, grads: Tree, updates: Tree, skipped: jax.Array) -> jax.Array:
    """The norms of a step, `[3, N]`: of the parameters after it, the gradient before it is clipped, and the update.

    Args:
        skipped: whether the step was skipped (not 0): its update is 0.
    """
    update_N = jnp.where(skipped > 0, 0.0, part_norms(updates))
    return jnp.stack([part_norms(params), part_norms(grads), update_N])
