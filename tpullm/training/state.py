"""The training state: a plain dict of arrays, and what follows from the declaration of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpullm.mesh.layout import RULES, unstacked_axes
from tpullm.model import quantized
from tpullm.model.adapter import NAME
from tpullm.model.transformer import Transformer
from tpullm.recipe.schema import AdapterConfig, ModelConfig

Tree = Any


class Architecture:
    """The model of a `ModelConfig` as a function of a plain dict of parameters, and the shapes in that dict.

    Two of the same config are equal, so a program that is compiled for one is reused for the other. With an adapter,
    its parameters are in the dict too, and they alone are trained.

    Attributes:
        shapes: tree of `jax.ShapeDtypeStruct`.
        axes: tree of logical axes, of the same structure; stacked parameters have `layers` first.
    """

    def __init__(self, config: ModelConfig, adapter: AdapterConfig | None = None):
        self.config, self.adapter = config, adapter if adapter and adapter.rank else None
        model = jax.eval_shape(lambda: Transformer(config, nnx.Rngs(0), self.adapter))
        self._graph, state = nnx.split(model)
        self.shapes = _plain(state, lambda variable: jax.ShapeDtypeStruct(variable.shape, variable.dtype))
        self.axes = _plain(state, _axes)
        self._state = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and (self.config, self.adapter) == (other.config, other.adapter)

    def __hash__(self) -> int:
        return hash((self.config, self.adapter))

    def trained(self, tree: Tree) -> Tree:
        """Of a tree of parameters, the part that is trained: all of it, or the adapters."""
        return tree if self.adapter is None else _part(tree, lambda path: NAME in path)

    def frozen(self, tree: Tree) -> Tree:
        """The other part."""
        return {} if self.adapter is None else _part(tree, lambda path: NAME not in path)

    def whole(self, trained: Tree, frozen: Tree) -> Tree:
        """A tree from its two parts."""
        return _nested(_flatten(trained) | _flatten(frozen)) if frozen else trained

    def model(self, params: Tree) -> Transformer:
        """The Transformer with these parameters."""
        flat = dict(nnx.to_flat_state(self._state))
        values = _flatten(params)
        state = nnx.from_flat_state({path: variable.replace(values[path]) for path, variable in flat.items()})
        return nnx.merge(self._graph, state)

    def init(self, key: jax.Array) -> Tree:
        """Fresh parameters, float32."""
        model = Transformer(self.config, nnx.Rngs(key), self.adapter)
        return _plain(nnx.split(model)[1], lambda variable: variable[...])

    def shardings(self, mesh: Mesh) -> Tree:
        """The sharding of every parameter on `mesh`."""
        return jax.tree.map(
            lambda axes: NamedSharding(mesh, RULES.spec(*axes)), self.axes, is_leaf=lambda node: isinstance(node, tuple)
        )

    def placed(self, mesh: Mesh, matrices: jnp.dtype | None = None) -> Tree:
        """Shape, type and sharding of every parameter on `mesh`: the target of restoring a checkpoint.

        Args:
            matrices: the type of matrices and tables, if not that of a training. A step casts them to the type of its
                matmuls anyway, so in that type they are frozen without a change of any bit. A router is multiplied in
                float32, so it keeps its type.
        """

        def place(leaf, sharding, axes):
            cast = matrices is not None and {"embed", "rank"} & set(axes) and not {"routes"} & set(axes)
            cast = cast and len(unstacked_axes(axes)) > 1
            return jax.ShapeDtypeStruct(leaf.shape, matrices if cast else leaf.dtype, sharding=sharding)

        return jax.tree.map(place, self.shapes, self.shardings(mesh), self.axes)

    def at_rest(self, mesh: Mesh, dtype: jnp.dtype) -> Tree:
        """The same in a training: beside an adapter, matrices are in the type of the matmuls, or quantized.

        Args:
            dtype: of the matmuls.
        """
        if self.adapter is None:
            return self.placed(mesh)
        return quantized.targets(self.placed(mesh, dtype), self.adapter.quantize_base)


def _axes(variable: nnx.Param) -> tuple[str, ...]:
    axes = variable.get_metadata()["logical_axes"]
    stacked = len(variable.shape) - len(axes)
    return ("layers",) * stacked + tuple(axes)


def _plain(state: nnx.State, leaf) -> Tree:
    """A nested dict from an NNX state."""
    return _nested({path: leaf(variable) for path, variable in nnx.to_flat_state(state)})


def _part(tree: Tree, wanted: Callable[[tuple[str, ...]], bool]) -> Tree:
    return _nested({path: leaf for path, leaf in _flatten(tree).items() if wanted(path)})


def _nested(flat: dict[tuple[str, ...], Any]) -> Tree:
    tree: dict = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _flatten(tree: dict, prefix: tuple = ()) -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, (*prefix, name)) if isinstance(value, dict) else {(*prefix, name): value}
    return flat


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
    parameters = _flatten(architecture.trained(architecture.placed(mesh)))

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
