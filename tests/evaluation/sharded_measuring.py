"""Run in its own process with 8 CPU devices: a training that measures its model and one that does not, as JSON.

Arguments: the folder of a tokenizer, and a file of questions.
"""

import hashlib
import json
import os
import sys

from tests.conftest import QUICK_TO_COMPILE

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"

import jax  # noqa: E402 (the devices must be asked for before)
import jax.numpy as jnp  # noqa: E402

from tests.training.small import batch  # noqa: E402
from tpullm import tokenizer as tokenizers  # noqa: E402
from tpullm.evaluation.while_training import while_training  # noqa: E402
from tpullm.model.architecture import Architecture  # noqa: E402
from tpullm.model.mesh import make_mesh  # noqa: E402
from tpullm.model.rows import put  # noqa: E402
from tpullm.recipe.schema import AdapterConfig, MeasureConfig, ModelConfig, OptimizerConfig, TrainConfig  # noqa: E402
from tpullm.training.optimizer.chain import make_optimizer  # noqa: E402
from tpullm.training.step import (
    make_step,  # noqa: E402
    with_params,  # noqa: E402
)

MESHES = {"one": {}, "fsdp 2, sequence 2, tensor 2": {"fsdp": 2, "sequence": 2, "tensor": 2}}


def trained(shape: dict[str, int], folder: str, questions: str, measures: bool, adapter: AdapterConfig | None) -> dict:
    """The hash of the state after two steps, and what was measured before each."""
    mesh = make_mesh(shape or {"fsdp": 1}, jax.devices() if shape else jax.devices()[:1])
    tokenizer, found = tokenizers.load(folder), []
    config = ModelConfig(layers=1, width=32, heads=4, kv_heads=2, mlp_width=64, context_length=256)
    architecture = Architecture(config.resolved(tokenizer.vocabulary_size), adapter)
    settings = MeasureConfig(tasks=[questions], prompts=["今日は"], sample_tokens=6)
    training = TrainConfig(batch_size=8, measure=settings, optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=1))
    dtype = jnp.dtype("float32")
    with jax.set_mesh(mesh):
        whole = jax.jit(architecture.init, out_shardings=architecture.shardings(mesh))(jax.random.key(0))
        frozen, axes = architecture.frozen(whole), architecture.trained(architecture.axes)
        optimizer = make_optimizer(training.optimizer, 20, axes, dtype, adapter)
        state = with_params(architecture.trained(whole), optimizer)
        step = make_step(architecture, optimizer, training, dtype, seed=0)
        measure = while_training("pretrain", training, tokenizer, architecture, mesh, dtype, 0)
        for number in range(2):
            if measures:
                params = architecture.whole(state["params"], frozen)
                found.append(measure.measure(number, params))
                del params
            state, _ = step(state, put(mesh, batch(rows=8, seed=number)), frozen)
        leaves = b"".join(jax.device_get(leaf).tobytes() for leaf in jax.tree.leaves(state))
    return {"state": hashlib.sha256(leaves).hexdigest(), "rows": found}


if __name__ == "__main__":
    asked = [(name, adapter, measures) for name in MESHES for adapter in (None, 2) for measures in (True, False)]
    results = [
        [*each, trained(MESHES[each[0]], *sys.argv[1:3], each[2], AdapterConfig(rank=each[1]) if each[1] else None)]
        for each in asked
    ]
    print(json.dumps(results))
