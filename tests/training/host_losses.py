"""Run as one of several hosts: losses of 20 steps on each mesh, and the rows that this host built."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from tests.training.small import TWO_LAYERS, begun
from tpullm.data import stream as streams
from tpullm.data import token_store
from tpullm.data.stream import EvaluationBatches, Stream
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import own_rows, put
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.system.cluster import hosts, place
from tpullm.training.evaluation import held_out
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import make_evaluation

MESHES = {
    "fsdp 8": {"fsdp": 8},
    "sequence 4, fsdp 2": {"sequence": 4, "fsdp": 2},
    "fsdp 4, tensor 2": {"fsdp": 4, "tensor": 2},
}
STEPS, ROWS, LENGTH = 20, 16, 32
CONFIG = TrainConfig(batch_size=ROWS, accumulation=2, optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1))


def documents(folder: Path) -> token_store.TokenStore:
    """The same documents of random tokens on every host."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 400)
    ids = np.arange(400).astype(np.uint64)
    path = folder / str(hosts.index())
    token_store.write_store(path, [(rng.integers(0, 96, lengths.sum()), lengths, ids)], np.dtype(np.uint16))
    return token_store.TokenStore(path)


def trained(mesh: jax.sharding.Mesh, texts: token_store.TokenStore) -> dict:
    """Losses, evaluation and rows of a training on that mesh."""
    built, build = [], streams.build
    streams.build = lambda parts, rows, length: built.append(rows) or build(parts, rows, length)
    rows = own_rows(mesh, ROWS)
    stream = Stream({"all": texts}, {"all": 1.0}, ROWS, LENGTH, 0, rows)
    whole = Stream({"all": texts}, {"all": 1.0}, ROWS, LENGTH, 0)
    losses, batches = [], []
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(CONFIG.optimizer, STEPS, TWO_LAYERS.axes)
        step, state, _ = begun(TWO_LAYERS, mesh, optimizer, CONFIG)
        for number in range(STEPS):
            batch = stream.batch_at(number)
            assert built[-1] == len(rows), "a host built rows of other hosts"
            placed = put(mesh, batch)
            for name, array in vars(whole.batch_at(number)).items():
                for shard in getattr(placed, name).addressable_shards:
                    assert (np.asarray(shard.data) == array[shard.index]).all(), f"{name} of step {number}"
            batches.append(batch)
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]))
        held = {"held out": list(EvaluationBatches(texts, ROWS, LENGTH, own_rows=rows))}
        evaluation = make_evaluation(TWO_LAYERS, jax.numpy.float32)
        found = held_out(evaluation, state["params"], mesh, held, np.arange(96))
    return {
        "losses": losses,
        "evaluation": [value for part in found.values() for value in part.values()],
        "rows": rows.tolist(),
    }


if __name__ == "__main__":
    flags, (folder, *asked) = place.take_flags("hosts", sys.argv[1:])
    hosts.join(place.find("hosts", flags, {}))
    assert len(jax.devices()) == 8
    texts = documents(Path(folder))
    results = {name: trained(make_mesh(MESHES[name]), texts) for name in asked or MESHES}
    print("\n" + json.dumps(results))
    hosts.leave()
