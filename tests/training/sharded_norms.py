"""Run by `tests/eight_devices.py`: the norms of a step on meshes, and numpy's of the gathered trees, as JSON.

Arguments: names of `CASES`; without any, the norms of fresh parameters, which takes no step. The optimizer
is plain descent at a rate of 1, so what a step subtracts from the parameters is the gradient.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
import optax

from tests.training.small import SPREAD, TWO_LAYERS, batch, begun
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put
from tpullm.recipe.schema import SkipConfig, TrainConfig
from tpullm.training.meter import KINDS
from tpullm.training.optimizer.chain import skip_bad_steps
from tpullm.training.step import (
    part_names,
    part_norms,
)

EXPERTS = Architecture(dataclasses.replace(SPREAD.config, balance_rate=0.0))
CASES = {
    "dense": (TWO_LAYERS, {"data": 2, "fsdp": 2, "tensor": 2}, 1),
    "accumulated": (TWO_LAYERS, {"data": 2, "fsdp": 2, "tensor": 2}, 2),
    "experts": (EXPERTS, {"expert": 2, "sequence": 2, "tensor": 2}, 1),
}


def by_numpy(tree) -> dict[str, float]:
    """The norm of each part, in float64, from leaf to leaf."""
    squares: dict[str, float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [entry.key for entry in path]
        in_layers = names[0] == "layers"
        for layer, one in enumerate(leaf if in_layers else leaf[None]):
            name = f"layer_{layer}.{names[1]}" if in_layers else names[0]
            squares[name] = squares.get(name, 0.0) + float(np.sum(np.square(one.astype(np.float64))))
    return {name: value**0.5 for name, value in squares.items()}


def of_parameters(architecture: Architecture, shape: dict[str, int]) -> dict:
    """The norms of fresh parameters, told and by numpy."""
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        params = jax.jit(architecture.init, out_shardings=architecture.shardings(mesh))(jax.random.key(0))
        norms = jax.jit(part_norms)(params).tolist()
    names = part_names(architecture.shapes, architecture.config.layers)
    return {"told": dict(zip(names, norms, strict=True)), "wanted": by_numpy(jax.tree.map(np.asarray, params))}


def compared(architecture: Architecture, shape: dict[str, int], accumulation: int) -> dict:
    """The norms of the second step of a training, told and by numpy, by kind and name."""
    mesh, optimizer = make_mesh(shape), skip_bad_steps(optax.sgd(1.0), SkipConfig())
    config = TrainConfig(batch_size=16, accumulation=accumulation, norms_every=1)
    with jax.set_mesh(mesh):
        step, state, _ = begun(architecture, mesh, optimizer, config)
        for number in range(2):
            before = jax.tree.map(np.asarray, state["params"])
            state, metrics = step(state, put(mesh, batch(rows=16, seed=number)))
    after = jax.tree.map(np.asarray, state["params"])
    moved = by_numpy(jax.tree.map(np.subtract, after, before))
    names = part_names(architecture.shapes, architecture.config.layers)
    rows = [dict(zip(names, row, strict=True)) for row in metrics["norms"].tolist()]
    told = dict(zip(KINDS, rows, strict=True))
    wanted = dict(zip(KINDS, (by_numpy(after), moved, moved), strict=True))
    return {"told": told, "wanted": wanted, "grad_norm": float(metrics["grad_norm"])}


if __name__ == "__main__":
    asked = sys.argv[1:]
    found = {name: compared(*CASES[name]) for name in asked}
    found = found or {name: of_parameters(*CASES[name][:2]) for name in ("dense", "experts")}
    print(json.dumps(found))
