"""The training state: a plain dict of arrays.

With an adapter the state holds the adapter alone. The frozen matrices are the third argument of the step, and in memory
once, in the type of the matmuls.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpullm.model.architecture import Architecture, flatten

Tree = Any


def initial(architecture: Architecture, optimizer: optax.GradientTransformation, key: jax.Array) -> Tree:
    """Step 0: `{"params", "optimizer", "step"}`, of the parameters that are trained."""
    return with_params(architecture.trained(architecture.init(key)), optimizer)


def with_params(params: Tree, optimizer: optax.GradientTransformation) -> Tree:
    """Step 0 of a stage that starts from these parameters."""
    return {"params": params, "optimizer": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def abstract(architecture: Architecture, optimizer: optax.GradientTransformation, mesh: Mesh) -> Tree:
    """Shapes, types and shardings of the state: the target of restoring a checkpoint, from any mesh.

    The optimizer's array of a parameter (same path in the tree, as many dimensions) is sharded like the parameter. If
    it is reduced over a dimension, that dimension has size 1 and is not sharded.
    """
    shapes = jax.eval_shape(lambda: with_params(_zeros(architecture.trained(architecture.shapes)), optimizer))
    parameters = flatten(architecture.trained(architecture.placed(mesh)))

    def place(path, leaf):
        names = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        of = next((parameters[names[i:]] for i in range(len(names)) if names[i:] in parameters), None)
        spec = PartitionSpec(*[None] * leaf.ndim)
        if of is not None and leaf.ndim == len(of.shape):
            sizes = zip(leaf.shape, of.shape, of.sharding.spec, strict=True)
            spec = PartitionSpec(*(axis if size == whole else None for size, whole, axis in sizes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, shapes)


def _zeros(shapes: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
