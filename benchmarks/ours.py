"""tpullm's programs: its step, optimizer and decoding, built as its commands build them."""

import itertools
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from sizes import BATCHES, DECODED, NEW_TOKENS, PROMPT_TOKENS, SIZES
from turns import Program

from tpullm.data.batch import Batch
from tpullm.hardware.peak_flops import peak as measured_peak
from tpullm.inference.decode import decode
from tpullm.inference.session import Session, targets, use_dtype
from tpullm.mesh.layout import make_mesh
from tpullm.mesh.rows import put
from tpullm.model.count import parameter_count, training_flops_per_token
from tpullm.model.platform import compute_dtype
from tpullm.recipe.schema import TrainConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.state import Architecture, abstract, initial
from tpullm.training.step import make_step

WARM_UP = 2  # steps: the first compiles, the second has found its memory


def training(size: str) -> Program:
    """Training steps as `training/loop.py` makes them, with the config's defaults; a unit is a step."""
    chosen = SIZES[size]
    config = TrainConfig(batch_size=chosen.batch_size, sequence_length=chosen.sequence_length)
    architecture, mesh, dtype = Architecture(chosen.model), make_mesh({"fsdp": -1}), compute_dtype(config.compute)
    optimizer = make_optimizer(config.optimizer, config.steps, architecture.axes)
    step = make_step(architecture, optimizer, config, dtype, seed=0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(architecture, optimizer, mesh))
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: initial(architecture, optimizer, key), out_shardings=shardings)
        state = make(jax.random.key(0))
    batches = itertools.cycle(random_batches(size))

    def run(count: int) -> dict:
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(count):
                state, values = step(state, put(mesh, next(batches)))
            jax.block_until_ready(state)
        return {"loss": float(values["loss"])}

    run(WARM_UP)
    facts = {
        "parameters": parameter_count(architecture.shapes),
        "flops_per_token": training_flops_per_token(chosen.model, chosen.sequence_length),
        "compute": dtype.name,
    }
    return Program(run, facts)


def random_batches(size: str, count: int = 8) -> list[Batch]:
    """Batches of random tokens; a row is one document."""
    chosen, random = SIZES[size], np.random.default_rng(0)
    rows = (chosen.batch_size, chosen.sequence_length)
    positions = np.broadcast_to(np.arange(rows[1], dtype=np.int32), rows)
    batches = []
    for _ in range(count):
        tokens = random.integers(chosen.model.vocabulary_size, size=(rows[0], rows[1] + 1), dtype=np.int32)
        ones = np.ones(rows, np.int32)
        batches.append(Batch(tokens[:, :-1], tokens[:, 1:], ones, positions, np.ones(rows, np.float32)))
    return batches


def decoding() -> Program:
    """Decode after `count` prompts at once, as `generate` and `evaluate` do; a unit is a prompt."""
    config, mesh, dtype = SIZES[DECODED].model, make_mesh({"fsdp": -1}), use_dtype(exact=False)
    architecture, tokenizer = Architecture(config), SimpleNamespace(pad_id=0, bos_id=1, eos_id=2)
    restored = targets(architecture, mesh, dtype)

    def params(key: jax.Array) -> dict:
        return jax.tree.map(lambda leaf, target: leaf.astype(target.dtype), architecture.init(key), restored)

    with jax.set_mesh(mesh):
        made = jax.jit(params, out_shardings=jax.tree.map(lambda target: target.sharding, restored))(jax.random.key(0))
    session = Session(tokenizer, architecture, made, mesh, dtype)
    random = np.random.default_rng(0)

    def run(count: int) -> None:
        prompts = random.integers(config.vocabulary_size, size=(count, PROMPT_TOKENS)).tolist()
        new = decode(session, prompts, NEW_TOKENS, stop_ids=())
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
