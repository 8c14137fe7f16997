"""The training state: a plain dict of arrays, and what follows from the declaration of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpullm.mesh.layout import RULES
from tpullm.model.transformer import Transformer
from tpullm.recipe.schema import ModelConfig

Tree = Any


class Architecture:
    """The model of a `ModelConfig` as a function of a plain dict of parameters, and the shapes in that dict.

    Two of the same config are equal, so a program that is compiled for one is reused for the other.

    Attributes:
        shapes: tree of `jax.ShapeDtypeStruct`.
        axes: tree of logical axes, of the same structure; stacked parameters have `layers` first.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        model = jax.eval_shape(lambda: Transformer(config, nnx.Rngs(0)))
        self._graph, state = nnx.split(model)
        self.shapes = _plain(state, lambda variable: jax.ShapeDtypeStruct(variable.shape, variable.dtype))
        self.axes = _plain(state, _axes)
        self._state = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.config == other.config

    def __hash__(self) -> int:
        return hash(self.config)

    def model(self, params: Tree) -> Transformer:
        """The Transformer with these parameters."""
        flat = dict(nnx.to_flat_state(self._state))
        values = _flatten(params)
        state = nnx.from_flat_state({path: variable.replace(values[path]) for path, variable in flat.items()})
        return nnx.merge(self._graph, state)

    def init(self, key: jax.Array) -> Tree:
        """Fresh parameters, float32."""
        return _plain(nnx.split(Transformer(self.config, nnx.Rngs(key)))[1], lambda variable: variable[...])

    def shardings(self, mesh: Mesh) -> Tree:
        """The sharding of every parameter on `mesh`."""
        return jax.tree.map(
            lambda axes: NamedSharding(mesh, RULES.spec(*axes)), self.axes, is_leaf=lambda node: isinstance(node, tuple)
        )

    def placed(self, mesh: Mesh) -> Tree:
        """Shape, type and sharding of every parameter on `mesh`: the target of restoring a checkpoint."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.shapes,
            self.shardings(mesh),
        )


def _axes(variable: nnx.Param) -> tuple[str, ...]:
    axes = variable.get_metadata()["logical_axes"]
    stacked = len(variable.shape) - len(axes)
    return ("layers",) * stacked + tuple(axes)


def _plain(state: nnx.State, leaf) -> Tree:
    """A nested dict from an NNX state."""
    tree: dict = {}
    for path, variable in nnx.to_flat_state(state):
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf(variable)
    return tree


def _flatten(tree: dict, prefix: tuple = ()) -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, (*prefix, name)) if isinstance(value, dict) else {(*prefix, name): value}
    return flat


def initial(architecture: Architecture, optimizer: optax.GradientTransformation, key: jax.Array) -> Tree:
    """Step 0: `{"params", "optimizer", "step"}`."""
    return with_params(architecture.init(key), optimizer)


def with_params(params: Tree, optimizer: optax.GradientTransformation) -> Tree:
    """Step 0 of a stage that starts from these parameters."""
    return {"params": params, "optimizer": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def abstract(architecture: Architecture, optimizer: optax.GradientTransformation, mesh: Mesh) -> Tree:
    """Shapes, types and shardings of the state: the target of restoring a checkpoint, from any mesh.

    The optimizer's array of a parameter (same path in the tree, as many dimensions) is sharded like the parameter. If
    it is reduced over a dimension, that dimension has size 1 and is not sharded.
    """
    shapes = jax.eval_shape(lambda: with_params(_zeros(architecture.shapes), optimizer))
    parameters = _flatten(architecture.placed(mesh))

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
