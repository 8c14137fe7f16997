"""tpullm's programs: its step, optimizer and decoding, built as its commands build them."""

import itertools
import time
from collections.abc import Sequence
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from sizes import BATCHES, DECODED, NEW_TOKENS, PROMPT_TOKENS, SIZES
from turns import Program

from tpullm.data.batch import Batch
from tpullm.engine.generation import decode_batch
from tpullm.engine.session import Session, dtype_in_use, parameter_targets
from tpullm.hardware.peak_flops import peak as measured_peak
from tpullm.model.architecture import Architecture, parameter_count, training_flops_per_token
from tpullm.model.mesh import make_mesh
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import ModelConfig, TrainConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state, initial_state, make_step

WARM_UP = 2  # steps: the first compiles, the second has found its memory


def training(size: str) -> Program:
    """Training steps of a size, with the config's defaults; a unit is a step."""
    chosen = SIZES[size]
    config = TrainConfig(batch_size=chosen.batch_size, sequence_length=chosen.sequence_length)
    return stepping(chosen.model, config, make_mesh({"fsdp": -1}), random_batches(size))


def stepping(model: ModelConfig, config: TrainConfig, mesh: Mesh, batches: Sequence[Batch]) -> Program:
    """Training steps as `training/loop.py` makes them, on these batches in turn; a unit is a step."""
    architecture, dtype = Architecture(model), compute_dtype(config.compute)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, config.steps, architecture.axes, dtype)
        step = make_step(architecture, optimizer, config, dtype, seed=0)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(architecture, optimizer, mesh))
        make = jax.jit(lambda key: initial_state(architecture, optimizer, key), out_shardings=shardings)
        state, values = make(jax.random.key(0)), None
    turn = itertools.cycle(batches)

    def run(count: int) -> dict:
        nonlocal state, values
        with jax.set_mesh(mesh):
            for _ in range(count):
                before = values
                state, values = step(state, put_rows(mesh, next(turn)))
                jax.block_until_ready(before)  # like the loop, at most one step ahead of the device
            jax.block_until_ready(state)
        return {"loss": float(values["loss"])}

    run(WARM_UP)
    facts = {
        "parameters": parameter_count(architecture.shapes),
        "flops_per_token": training_flops_per_token(model, config.sequence_length),
        "compute": dtype.name,
    }
    return Program(run, facts)


def random_batches(size: str, count: int = 8) -> list[Batch]:
    """Batches of random tokens; a row is one document."""
    chosen = SIZES[size]
    return random_rows(chosen.model.vocabulary_size, chosen.batch_size, chosen.sequence_length, count)


def random_rows(vocabulary: int, rows: int, length: int, count: int) -> list[Batch]:
    """`count` batches of random tokens; a row is one document."""
    random, shape = np.random.default_rng(0), (rows, length)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    batches = []
    for _ in range(count):
        tokens = random.integers(vocabulary, size=(rows, length + 1), dtype=np.int32)
        ones = np.ones(shape, np.int32)
        batches.append(Batch(tokens[:, :-1], tokens[:, 1:], ones, positions, np.ones(shape, np.float32)))
    return batches


def decoding() -> Program:
    """Decode after `count` prompts at once, as `generate` and `evaluate` do; a unit is a prompt."""
    config, mesh, dtype = SIZES[DECODED].model, make_mesh({"fsdp": -1}), dtype_in_use(exact=False)
    architecture, tokenizer = Architecture(config), SimpleNamespace(pad_id=0, bos_id=1, eos_id=2)
    restored = parameter_targets(architecture, mesh, dtype)

    def params(key: jax.Array) -> dict:
        return jax.tree.map(lambda leaf, target: leaf.astype(target.dtype), architecture.init(key), restored)

    with jax.set_mesh(mesh):
        made = jax.jit(params, out_shardings=jax.tree.map(lambda target: target.sharding, restored))(jax.random.key(0))
    session = Session(tokenizer, architecture, made, mesh, dtype)
    random = np.random.default_rng(0)

    def run(count: int) -> None:
        prompts = random.integers(config.vocabulary_size, size=(count, PROMPT_TOKENS)).tolist()
        new = decode_batch(session, prompts, NEW_TOKENS, stop_ids=())
        assert [len(ids) for ids in new] == [NEW_TOKENS] * count

    for count in BATCHES:
        run(count)
    return Program(run, {"compute": dtype.name})


def peak(size: int = 2048) -> Program:
    """Matmuls of square bfloat16 matrices; the answer has the best FLOP/s, our own measurement included."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()

    def run(count: int) -> dict:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            product(x, x).block_until_ready()
            seconds.append(time.perf_counter() - start)
        return {"flops": max(2 * size**3 / min(seconds), measured_peak(jnp.dtype("bfloat16")).flops)}

    return Program(run, {})
