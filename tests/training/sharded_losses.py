"""Run in a process of its own with 8 CPU devices: losses of 3 steps of a model on each mesh, as one JSON object."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402 (the devices must be asked for before)
import jax.numpy as jnp  # noqa: E402

from tests.training.small import ARCHITECTURE, EXPERTS, SPREAD, batch  # noqa: E402
from tpullm.config import OptimizerConfig, TrainConfig  # noqa: E402
from tpullm.sharding import make_mesh, put  # noqa: E402
from tpullm.training.optim import make_optimizer  # noqa: E402
from tpullm.training.state import Architecture, abstract, initial  # noqa: E402
from tpullm.training.step import make_step  # noqa: E402

MODELS = {"dense": ARCHITECTURE, "experts": EXPERTS, "spread": SPREAD}
MESHES = {
    "one device": {},
    "fsdp 8": {"fsdp": 8},
    "fsdp 4, tensor 2": {"fsdp": -1, "tensor": 2},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence 4, fsdp 2": {"sequence": 4, "fsdp": 2},
}
EXPERT_MESHES = {
    "one device": {},
    "expert 4, fsdp 2": {"expert": 4, "fsdp": 2},
    "expert 8": {"expert": 8},
    "expert 2, sequence 2, tensor 2": {"expert": 2, "sequence": 2, "tensor": 2},
}


ADAMW = OptimizerConfig(peak_lr=1e-2, warmup_steps=1)


def losses(
    architecture: Architecture,
    shape: dict[str, int],
    accumulation: int = 1,
    optimizer: OptimizerConfig = ADAMW,
    steps: int = 3,
) -> list[float]:
    """Losses and gradient norms of the first steps; with `balance_rate` also the loads, and the biases in the end."""
    mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
    config = TrainConfig(batch_size=16, accumulation=accumulation, optimizer=optimizer)
    found = []
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, 10, architecture.axes)
        target = abstract(architecture, optimizer, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
        state = jax.jit(lambda key: initial(architecture, optimizer, key), out_shardings=shardings)(jax.random.key(0))
        step = make_step(architecture, optimizer, config, jnp.float32, seed=0)
        for number in range(steps):
            state, metrics = step(state, put(mesh, batch(rows=16, seed=number)))
            found += [float(metrics["loss"]), float(metrics["grad_norm"])]
            if architecture.config.balance_rate:
                found += [float(metrics["balance_loss"]), *metrics["expert_loads"].tolist()]
        kept = jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted, state, shardings)
        assert all(jax.tree.leaves(kept)), "the step moved a part of the state to another layout"
        if architecture.config.balance_rate:
            found += state["params"]["layers"]["mlp"]["balance"].reshape(-1).tolist()
    return found


if __name__ == "__main__":
    meshes = EXPERT_MESHES if sys.argv[1] == "spread" else MESHES
    model, asked = MODELS[sys.argv[1]], sys.argv[2:] or meshes
    results = {name: losses(model, meshes[name]) for name in asked}
    last = list(asked)[-1]
    results[f"{last}, accumulated"] = losses(model, meshes[last], accumulation=2)
    print(json.dumps(results))
