"""Run by `tests/eight_devices.py`: what is measured of a model in training on several meshes, as JSON.

Arguments: the folder of a tokenizer, and a file of questions.
"""

import json
import sys

import jax
import jax.numpy as jnp

from tpullm import tokenizer as tokenizers
from tpullm.evaluation.while_training import while_training
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.schema import AdapterConfig, MeasureConfig, ModelConfig, TrainConfig

MESHES = {"one": {"fsdp": 1}, "fsdp 2, sequence 2, tensor 2": {"fsdp": 2, "sequence": 2, "tensor": 2}}


def measured(shape: dict[str, int], folder: str, questions: str, adapter: AdapterConfig | None) -> dict:
    mesh = make_mesh(shape, jax.devices()[: 1 if len(shape) == 1 else 8])
    tokenizer, dtype = tokenizers.load(folder), jnp.dtype("float32")
    config = ModelConfig(layers=1, width=32, heads=4, kv_heads=2, mlp_width=64, context_length=256)
    architecture = Architecture(config.resolved(tokenizer.vocabulary_size), adapter)
    training = TrainConfig(measure=MeasureConfig(tasks=[questions], prompts=["今日は"], sample_tokens=6))
    with jax.set_mesh(mesh):
        params = jax.jit(architecture.init, out_shardings=architecture.shardings(mesh))(jax.random.key(0))
        return while_training("pretrain", training, tokenizer, architecture, mesh, dtype, 0).measure(0, params)


if __name__ == "__main__":
    adapters = (None, AdapterConfig(rank=2))
    print(json.dumps([[measured(shape, *sys.argv[1:3], adapter) for adapter in adapters] for shape in MESHES.values()]))
