"""Run by `tests/eight_devices.py`: what `OwnAnswers` samples and the engine writes on each mesh, as JSON.

And what a model in 4 bits finds likeliest.
"""

import dataclasses
import json
import math
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.data.prompts import Prompts
from tpullm.engine.engine import Engine
from tpullm.engine.generation import continue_prompts
from tpullm.engine.guesses import Lookup
from tpullm.engine.request import Request
from tpullm.engine.session import Session
from tpullm.evaluation.measured_model import parameter_hash
from tpullm.evaluation.scoring import logits
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh, mesh_of_single_tokens
from tpullm.model.quantized import change_each_matrix, quantized
from tpullm.recipe.sampling import Sampling
from tpullm.recipe.schema import AdapterConfig, ModelConfig, PolicyConfig, TrainConfig
from tpullm.training.rollouts import OwnAnswers

CONFIG = ModelConfig(layers=1, width=32, heads=4, kv_heads=2, mlp_width=64, context_length=64).resolved(256)
PROMPTS = [[5, 6, 7], [9] * 11, [3], [4, 4, 4, 4], [8] * 7]
ONE, ROWS_AND_HEADS, ROWS_IN_PARTS = {}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2}
OTHERS = [{"fsdp": 8}, ROWS_AND_HEADS, {"data": 2, "sequence": 4}]


class Stops:
    """Of the tokenizer, what decoding asks for."""

    pad_id, stop_ids = 0, [17]


def answers(shape: dict[str, int]) -> list:
    """Two answers each to four of the prompts, at a high temperature."""
    mesh = make_mesh(shape or {"fsdp": 1}, jax.devices()[: math.prod(shape.values())])
    architecture = Architecture(CONFIG, AdapterConfig(rank=2))
    with jax.set_mesh(mesh):
        params = jax.jit(architecture.init, out_shardings=architecture.shardings(mesh))(jax.random.key(0))
        prompts, settings = Prompts([None] * len(PROMPTS), PROMPTS), PolicyConfig(temperature=5.0, answers=2, tokens=9)
        parts = (TrainConfig(batch_size=8, sequence_length=32), Stops(), architecture, mesh, jnp.dtype("float32"), 3)
        return OwnAnswers(prompts, None, settings, *parts).sampled(6, params, np.array([0, 3, 1, 4]))


@mock.patch.multiple("tpullm.engine.cache", LEAST_ROWS=1, GROUP_BYTES=1)
def texts(shape: dict[str, int]) -> list:
    """What the engine writes: texts of several chunks that begin alike, more than there are rows, in groups of two
    sizes, of the first one several.
    """
    mesh = mesh_of_single_tokens(make_mesh(shape or {"fsdp": 1}, jax.devices()[: math.prod(shape.values())]))
    architecture = Architecture(dataclasses.replace(CONFIG, context_length=640))
    with jax.set_mesh(mesh):
        params = jax.jit(architecture.init, out_shardings=architecture.shardings(mesh))(jax.random.key(0))
    session = Session(Stops(), architecture, params, mesh, jnp.dtype("float32"))
    prompts = [(*[5] * 130, n, 7) for n in range(20)] + [(*[6, 8] * 255, 3)]
    asked = [Request(ids, 5, Sampling(5.0, 0, 1.0, 0.0), seed) for seed, ids in enumerate(prompts)]
    return [*continue_prompts(session, asked, rows=8), _guessed(session)]


def _guessed(session) -> list[int]:
    engine, new = Engine(session, 4, guesses=Lookup()), []
    engine.submit(Request((6, 8, 9) * 9, 40, Sampling(0.05, 0, 1.0, 0.0)), lambda token: new.append(token.id))
    while engine.step():
        pass
    assert engine.figures()["guesses"], "nothing was guessed"
    return new


def in_4_bits(shape: dict[str, int]) -> list:
    """The hash of the parameters of a model in int4, and the likeliest token after each of some."""
    one = make_mesh({"fsdp": 1}, jax.devices()[:1])
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())]) if shape else one
    architecture = Architecture(dataclasses.replace(CONFIG, width=128, mlp_width=256))
    with jax.set_mesh(one):  # on another mesh, the last bit of a fresh parameter may be another
        given = jax.device_get(jax.jit(architecture.init)(jax.random.key(0)))
    change = lambda of: change_each_matrix(of, lambda matrix, axis: quantized(matrix, "int4", axis))  # noqa: E731
    with jax.set_mesh(mesh):
        params = jax.jit(change)(jax.device_put(given, architecture.shardings(mesh)))
    session = Session(Stops(), architecture, params, mesh, jnp.dtype("float32"), weights="int4")
    tokens = np.arange(64, dtype=np.int32).reshape(8, 8) * 3
    return [parameter_hash(session), *logits(session, tokens).argmax(axis=-1).ravel().tolist()]


if __name__ == "__main__":
    # Each mesh is another program for everything.
    wanted = [(answers, [ONE, *OTHERS])] if sys.argv[1:] == ["others"] else []
    wanted = wanted or [(answers, [ONE, ROWS_IN_PARTS]), *((of, [ONE, ROWS_AND_HEADS]) for of in (texts, in_4_bits))]
    print(json.dumps([{str(shape): made(shape) for shape in meshes} for made, meshes in wanted]))
