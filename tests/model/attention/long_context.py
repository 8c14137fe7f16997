"""Run in its own process: the bytes that a device needs for a training step, alone and on a mesh, as JSON."""

import json
import sys

import jax
import numpy as np

from tpullm.data.batch import Batch
from tpullm.model.architecture import Architecture
from tpullm.model.attention import kernels
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import ModelConfig, TrainConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state, make_step

LENGTH, ROWS, SHAPE = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
CONFIG = ModelConfig(layers=1, width=16, heads=1, head_width=8, mlp_width=32, context_length=LENGTH).resolved(64)


def bytes_of_a_device(mesh: jax.sharding.Mesh) -> int:
    """Arguments and temporary arrays of the compiled step; nothing is computed."""
    architecture, train = Architecture(CONFIG), TrainConfig(batch_size=ROWS, sequence_length=LENGTH)
    ones = np.ones((ROWS, LENGTH), np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    rows = Batch(ones, ones, ones, positions, ones.astype(np.float32))
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(train.optimizer, 10, architecture.axes)
        step = make_step(architecture, optimizer, train, np.dtype("float32"), seed=0)
        memory = (
            step.lower(abstract_state(architecture, optimizer, mesh), put_rows(mesh, rows)).compile().memory_analysis()
        )
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes


kernels.LONGEST_KEPT = 0  # otherwise one device uses another kernel for a short row
print(json.dumps([bytes_of_a_device(mesh) for mesh in (make_mesh({}, jax.devices()[:1]), make_mesh(SHAPE))]))
