"""Run in its own process: the bytes that a device needs for a training step, alone and on a mesh, as JSON."""

import json
import sys
from types import SimpleNamespace

import jax

from tpullm.model.attention import kernels
from tpullm.model.mesh import make_mesh
from tpullm.planning.program import traced_step
from tpullm.recipe.schema import ModelConfig, TrainConfig

LENGTH, ROWS, SHAPE = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
CONFIG = ModelConfig(layers=1, width=16, heads=1, head_width=8, mlp_width=32, context_length=LENGTH).resolved(64)


def bytes_of_a_device(mesh: jax.sharding.Mesh) -> int:
    train = TrainConfig(batch_size=ROWS, sequence_length=LENGTH, compute="float32")
    job = SimpleNamespace(model=CONFIG, config=train, adapter=None)
    memory = traced_step(job, mesh).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes


kernels.LONGEST_KEPT = 0  # otherwise one device uses another kernel for a short row
print(json.dumps([bytes_of_a_device(mesh) for mesh in (make_mesh({}, jax.devices()[:1]), make_mesh(SHAPE))]))
