"""Run by `tests/eight_devices.py`: losses of a model on each mesh, as one JSON object.

Arguments: the model, the optimizer, the number of steps, and the meshes (none is all, and the last one accumulated).
"""

import dataclasses
import json
import sys

import jax

from tests.training.small import EXPERTS, FIRST_DENSE, TWO_LAYERS, batch, begun
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.training.optimizer.chain import make_optimizer

FP8 = Architecture(dataclasses.replace(TWO_LAYERS.config, matmuls="fp8"))
MODELS = {"dense": TWO_LAYERS, "experts": EXPERTS, "spread": FIRST_DENSE, "fp8": FP8}
MESHES = {
    "one device": {},
    "fsdp 8": {"fsdp": 8},
    "fsdp 4, tensor 2": {"fsdp": -1, "tensor": 2},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence 4, fsdp 2": {"sequence": 4, "fsdp": 2},
}
# Also for a mixture whose experts the mesh can split.
EXPERT_MESHES = MESHES | {
    "expert 4, fsdp 2": {"expert": 4, "fsdp": 2},
    "expert 8": {"expert": 8},
    "expert 2, sequence 2, tensor 2": {"expert": 2, "sequence": 2, "tensor": 2},
}
ACCUMULATED = ", accumulated"  # after the name of a mesh: the batch is cut in two
SCHEDULE = 20  # steps of the schedule; a test runs the first of them
OPTIMIZERS = {
    "adamw": OptimizerConfig(peak_lr=3e-3, warmup_steps=1),
    "adamw bfloat16": OptimizerConfig(peak_lr=1e-2, warmup_steps=1, moments="bfloat16"),
    "adafactor": OptimizerConfig(kind="adafactor", peak_lr=1e-2, warmup_steps=1),
    "muon": OptimizerConfig(kind="muon", peak_lr=1e-2, warmup_steps=1),
    "muon bfloat16": OptimizerConfig(kind="muon", peak_lr=1e-2, warmup_steps=1, moments="bfloat16"),
}


def losses(architecture, shape: dict[str, int], steps: int, accumulation: int, optimizer) -> dict[str, list]:
    """The metrics of each of the first steps (with `balance_rate` also the loads), and the final biases of experts."""
    mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
    config = TrainConfig(batch_size=16, accumulation=accumulation, optimizer=optimizer, norms_every=1)
    said = ["loss", "grad_norm", "norms"] + ["balance_loss", "expert_loads"] * bool(architecture.config.balance_rate)
    found = {name: [] for name in said}
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, SCHEDULE, architecture.axes)
        step, state, shardings = begun(architecture, mesh, optimizer, config)
        for number in range(steps):
            state, metrics = step(state, put_rows(mesh, batch(rows=16, seed=number)))
            for name in said:
                found[name].append(metrics[name].tolist())
        kept = jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted, state, shardings)
        assert all(jax.tree.leaves(kept)), "the step changed the sharding of a part of the state"
        if architecture.config.balance_rate:
            found["biases"] = state["params"]["layers"]["mlp"]["balance"].tolist()
    return found


def asked_for(names: list[str]) -> list[tuple[str, str, int]]:
    """What is asked for, its mesh, and the number of micro-batches."""
    return [(name, name.removesuffix(ACCUMULATED), 1 + name.endswith(ACCUMULATED)) for name in names]


if __name__ == "__main__":
    model, optimizer, steps, *asked = sys.argv[1:]
    meshes = EXPERT_MESHES if model == "spread" else MESHES
    results = {
        name: losses(MODELS[model], meshes[mesh], int(steps), accumulation, OPTIMIZERS[optimizer])
        for name, mesh, accumulation in asked_for(asked or [*meshes, f"{[*meshes][-1]}{ACCUMULATED}"])
    }
    print(json.dumps(results))
