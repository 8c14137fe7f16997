"""The training state between steps: bytes of parameters and of the optimizer's state on a device, for any mesh.

Shapes and layouts come from `training.state.abstract`, once for a model. A mesh then only divides them.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp

from tpullm.mesh.layout import mesh_axes, planned_mesh
from tpullm.planning.setting import PLACES
from tpullm.recipe.schema import AdapterConfig, ModelConfig, OptimizerConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.state import Architecture, abstract

Whole = tuple[tuple[tuple[str, ...], int], ...]  # mesh axes, and the bytes of all arrays that they split


@dataclass(frozen=True)
class Resting:
    """Bytes of the whole state, by the mesh axes that split them.

    Args:
        parameters: that are trained: of the model, or of its adapter.
        optimizer: its state.
        frozen: the parameters beside an adapter.
    """

    parameters: Whole
    optimizer: Whole
    frozen: Whole = ()

    def total(self) -> int:
        """Bytes of what is trained: the size of a checkpoint."""
        return sum(size for _, size in self.parameters + self.optimizer)


def of_device(whole: Whole, sizes: tuple[int, ...]) -> float:
    """Bytes on one device of a mesh of these `sizes` (in the order of `AXES`)."""
    total = 0.0
    for axes, size in whole:
        for axis in axes:
            size /= sizes[PLACES[axis]]
        total += size
    return total


@lru_cache(maxsize=64)
def resting(model: ModelConfig, optimizer: OptimizerConfig, adapter: AdapterConfig | None = None) -> Resting:
    """The state of a training of this model, or of an adapter beside it."""
    architecture, mesh = _architecture(model, adapter), planned_mesh({}, 1)
    made = make_optimizer(optimizer, 1000, architecture.trained(architecture.axes), adapter=architecture.adapter)
    state = abstract(architecture, made, mesh)
    frozen = architecture.frozen(architecture.at_rest(mesh, jnp.dtype("bfloat16")))
    return Resting(_whole(state["params"]), _whole(state["optimizer"]), _whole(frozen))


@lru_cache(maxsize=8)
def _architecture(model: ModelConfig, adapter: AdapterConfig | None) -> Architecture:
    return Architecture(model, adapter)


def _whole(tree) -> Whole:
    found = Counter()
    for leaf in jax.tree.leaves(tree):
        axes = mesh_axes(leaf.sharding.spec, range(min(len(leaf.shape), len(leaf.sharding.spec))))
        found[axes] += math.prod(leaf.shape) * leaf.dtype.itemsize
    return tuple(found.items())
