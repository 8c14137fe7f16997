"""Run in its own process with 8 CPU devices: losses of 4 steps with an optimizer on each mesh, as JSON.

Arguments: the model, the optimizer, and the meshes (none is all).
"""

import json
import sys

from tests.training.sharded_losses import MESHES, MODELS, losses
from tpullm.recipe.schema import OptimizerConfig

OPTIMIZERS = {
    "adamw bfloat16": OptimizerConfig(peak_lr=1e-2, warmup_steps=1, moments="bfloat16"),
    "adafactor": OptimizerConfig(kind="adafactor", peak_lr=1e-2, warmup_steps=1),
    "muon": OptimizerConfig(kind="muon", peak_lr=1e-2, warmup_steps=1),
    "muon bfloat16": OptimizerConfig(kind="muon", peak_lr=1e-2, warmup_steps=1, moments="bfloat16"),
}

if __name__ == "__main__":
    model, optimizer, *meshes = sys.argv[1:]
    found = {name: losses(MODELS[model], MESHES[name], 4, optimizer=OPTIMIZERS[optimizer]) for name in meshes or MESHES}
    print(json.dumps(found))
