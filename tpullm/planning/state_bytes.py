"""The training state between steps: bytes of parameters and of the optimizer's state on a device, for any mesh.

Shapes and layouts come from `training.state.abstract`, once for a model. A mesh then only divides them.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import jax

from tpullm.mesh.layout import mesh_axes, planned_mesh
from tpullm.planning.setting import PLACES
from tpullm.recipe.schema import ModelConfig, OptimizerConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.state import Architecture, abstract

Whole = tuple[tuple[tuple[str, ...], int], ...]  # mesh axes, and the bytes of all arrays that they split


@dataclass(frozen=True)
class Resting:
    """Bytes of the whole state, by the mesh axes that split them.

    Args:
        parameters: of the model.
        optimizer: its state.
    """

    parameters: Whole
    optimizer: Whole

    def total(self) -> int:
        """Bytes of the whole state: the size of a checkpoint."""
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
def resting(model: ModelConfig, optimizer: OptimizerConfig) -> Resting:
    """The state of a training of this model."""
    architecture, mesh = _architecture(model), planned_mesh({}, 1)
    state = abstract(architecture, make_optimizer(optimizer, 1000, architecture.axes), mesh)
    return Resting(_whole(state["params"]), _whole(state["optimizer"]))


@lru_cache(maxsize=8)
def _architecture(model: ModelConfig) -> Architecture:
    return Architecture(model)


def _whole(tree) -> Whole:
    found = Counter()
    for leaf in jax.tree.leaves(tree):
        axes = mesh_axes(leaf.sharding.spec, range(min(leaf.ndim, len(leaf.sharding.spec))))
        found[axes] += math.prod(leaf.shape) * leaf.dtype.itemsize
    return tuple(found.items())
