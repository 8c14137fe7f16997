"""Run in its own process: one training step on rows of several long documents, on one device and on a mesh, as JSON.

Arguments: the tokens of the row, how many rows, and the mesh as JSON.
"""

import json
import math
import os
import resource
import sys
import time

from tests.training.several_hosts import QUICK_TO_COMPILE

LENGTH, ROWS, SHAPE = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
QUICK = QUICK_TO_COMPILE if LENGTH < 10_000 else ""
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={math.prod(SHAPE.values())} {QUICK}"

import jax  # noqa: E402 (the devices must be asked for before)
import numpy as np  # noqa: E402

from tests.model.attention.documents import documents  # noqa: E402
from tpullm.data.batch import Batch  # noqa: E402
from tpullm.model.architecture import Architecture  # noqa: E402
from tpullm.model.attention import kernels  # noqa: E402
from tpullm.model.mesh import make_mesh  # noqa: E402
from tpullm.model.rows import put  # noqa: E402
from tpullm.recipe.schema import ModelConfig, OptimizerConfig, TrainConfig  # noqa: E402
from tpullm.training.optimizer.chain import make_optimizer  # noqa: E402
from tpullm.training.step import (  # noqa: E402
    abstract,
    initial,
    make_step,  # noqa: E402
)

VOCABULARY = 64
CONFIG = ModelConfig(layers=1, width=16, heads=1, head_width=8, mlp_width=32, context_length=LENGTH)
TRAIN = TrainConfig(batch_size=ROWS, sequence_length=LENGTH, optimizer=OptimizerConfig(warmup_steps=1))


def rows() -> Batch:
    """Random tokens in the same documents in each row."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    segments, positions = (np.tile(x, (ROWS, 1)) for x in documents(LENGTH))
    return Batch(tokens[:, :-1], tokens[:, 1:], segments, positions, (segments > 0).astype(np.float32))


def of_step(mesh) -> dict:
    """Loss and gradient norm of a step, its seconds, the bytes of a device, and the peak of this process so far."""
    architecture = Architecture(CONFIG.resolved(VOCABULARY))
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(TRAIN.optimizer, 10, architecture.axes)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(architecture, optimizer, mesh))
        state = jax.jit(lambda key: initial(architecture, optimizer, key), out_shardings=shardings)(jax.random.key(0))
        step = make_step(architecture, optimizer, TRAIN, jax.numpy.float32, seed=0).lower(state, put(mesh, rows()))
        step = step.compile()
        began = time.perf_counter()
        _, metrics = step(state, put(mesh, rows()))
        found = {"loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"])}
        found["seconds"] = round(time.perf_counter() - began, 2)
    memory = step.memory_analysis()
    found["bytes_of_a_device"] = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    found["bytes_of_the_process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def main():
    """Both."""
    kernels.LONGEST_KEPT = 0  # otherwise one device uses another kernel for a short row
    meshes = {"one device": make_mesh({}, jax.devices()[:1]), "the mesh": make_mesh(SHAPE)}
    print(json.dumps({name: of_step(mesh) for name, mesh in meshes.items()}))


if __name__ == "__main__":
    main()
