"""A model as a function of a plain dict of parameters: the shapes, axes and layouts of that dict, and what they tell.

`jax.eval_shape` of the model gives the shapes, shardings, counts and restore targets of its parameters, so each is
declared once, where the model uses it. With an adapter the tree has the parameters of both; `trained` and `frozen` are
its two parts. The functions here tell by logical axes alone which parameters an optimizer treats as matrices, and what
their inputs and outputs are; they also count parameters, and the FLOPs of a token.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from tpullm.model import quantized
from tpullm.model.adapter import NAME
from tpullm.model.mesh import RULES, unstacked_axes
from tpullm.model.transformer import Transformer
from tpullm.recipe.schema import AdapterConfig, ModelConfig


def parameter_count(shapes: dict) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that multiply each token: the matrices of the blocks (chosen experts alone) and the output table."""
    D, N, K, H = config.width, config.heads, config.kv_heads, config.head_width
    found = config.vocabulary_size * D
    for of_layer, numbers in config.stacks.values():
        mlp = (3 if config.gated else 2) * D * of_layer.mlp_width
        if of_layer.experts:
            mlp = (config.experts_per_token + config.shared_experts) * mlp + D * config.experts
        found += len(numbers) * (2 * D * N * H + 2 * D * K * H + mlp)
    return found


def training_flops_per_token(config: ModelConfig, sequence_length: int, frozen: bool = False) -> float:
    """Floating-point operations of forward and backward for one token (PaLM, appendix B, causal attention halved).

    6 per matrix parameter: 2 for each multiply-add, times 3 for the forward pass and the two gradients. Attention adds
    `6 L T N H`, half of 12: a token attends to T/2 others on average.

    Args:
        frozen: matrices have no gradients, since adapters are trained beside them: 4 a parameter. What the adapters
            compute is not counted.
    """
    attention = 6 * config.layers * sequence_length * config.heads * config.head_width
    return (4 if frozen else 6) * matrix_parameters(config) + attention


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter with these logical axes is a matrix (decayed) and not a scale or a bias."""
    return bool({"embed", "rank"} & set(axes)) and len(unstacked_axes(axes)) > 1


def is_second_of_adapter(axes: tuple[str, ...]) -> bool:
    """Whether it is the second matrix of a low-rank adapter, `[R, *outputs]`."""
    return unstacked_axes(axes)[0] == "rank"


def is_hidden_matrix(axes: tuple[str, ...]) -> bool:
    """Whether it is a matrix between hidden activations (of attention, an MLP, an expert), not a table or router.

    Of those, each token, position or expert has its own row, whose gradient comes from few tokens.
    """
    return is_matrix(axes) and not {"vocabulary", "position", "routes"} & set(axes)


def unstacked_dimensions(axes: tuple[str, ...]) -> tuple[int, ...]:
    """The dimensions of one parameter; those that stack layers and experts come before them."""
    return tuple(range(len(axes) - len(unstacked_axes(axes)), len(axes)))


def matrix_sides(axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input dimensions and the output dimensions of a matrix; together they are `unstacked_dimensions`.

    `embed` is one side and all others are the other side: `("layers", "embed", "heads", "head")` is, for each layer,
    a matrix of `embed` inputs and `heads * head` outputs. In a matrix of an adapter `rank` is one side.
    """
    dimensions = unstacked_dimensions(axes)
    if axes[dimensions[0]] in ("embed", "rank"):
        return dimensions[:1], dimensions[1:]
    assert axes[dimensions[-1]] in ("embed", "rank"), f"{axes}: `embed` stands between others"
    return dimensions[:-1], dimensions[-1:]


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
        self._graph, state = nnx.split(jax.eval_shape(lambda: Transformer(config, nnx.Rngs(0), self.adapter)))

        def axes(variable: nnx.Param) -> tuple[str, ...]:
            of_one = variable.get_metadata()["logical_axes"]
            return ("layers",) * (len(variable.shape) - len(of_one)) + tuple(of_one)

        self.shapes = _nested_dict(state, lambda variable: jax.ShapeDtypeStruct(variable.shape, variable.dtype))
        self.axes, self._state = _nested_dict(state, axes), state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and (self.config, self.adapter) == (other.config, other.adapter)

    def __hash__(self) -> int:
        return hash((self.config, self.adapter))

    def trained(self, tree: Tree) -> Tree:
        """Of a tree of parameters, the part that is trained: all of it, or the adapters."""
        return tree if self.adapter is None else _adapter_part(tree, of_adapter=True)

    def frozen(self, tree: Tree) -> Tree:
        """The other part."""
        return {} if self.adapter is None else _adapter_part(tree, of_adapter=False)

    def whole(self, trained: Tree, frozen: Tree) -> Tree:
        """A tree from its two parts."""
        return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen)) if frozen else trained

    def model(self, params: Tree) -> Transformer:
        """The Transformer with these parameters."""
        values, flat = flatten_dict(params), nnx.to_flat_state(self._state)
        return nnx.merge(self._graph, nnx.from_flat_state([(path, of.replace(values[path])) for path, of in flat]))

    def init(self, key: jax.Array) -> Tree:
        """Fresh parameters, float32."""
        state = nnx.split(Transformer(self.config, nnx.Rngs(key), self.adapter))[1]
        return _nested_dict(state, lambda variable: variable[...])

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
            cast = matrices is not None and is_matrix(axes) and "routes" not in axes
            return jax.ShapeDtypeStruct(leaf.shape, matrices if cast else leaf.dtype, sharding=sharding)

        return jax.tree.map(place, self.shapes, self.shardings(mesh), self.axes)

    def at_rest(self, mesh: Mesh, dtype: jnp.dtype) -> Tree:
        """The same in a training: beside an adapter, matrices are in the type of the matmuls, or quantized.

        Args:
            dtype: of the matmuls.
        """
        if self.adapter is None:
            return self.placed(mesh)
        return quantized.packed_targets(self.placed(mesh, dtype), self.adapter.quantize_base)


def _nested_dict(state: nnx.State, leaf) -> Tree:
    """A nested dict from an NNX state."""
    return unflatten_dict({path: leaf(variable) for path, variable in nnx.to_flat_state(state)})


def _adapter_part(tree: Tree, of_adapter: bool) -> Tree:
    flat = flatten_dict(tree)
    return unflatten_dict({path: leaf for path, leaf in flat.items() if (NAME in path) == of_adapter})
