"""Run as one of several hosts: losses of 20 steps on a mesh, an evaluation, and the rows that this host built."""

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
from tpullm.model.rows import own_rows, put_rows
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.system.cluster import hosts, place
from tpullm.training.evaluation import held_out_losses
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import make_evaluation

STEPS, ROWS, LENGTH = 20, 16, 32
CONFIG = TrainConfig(batch_size=ROWS, accumulation=2, optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1))


def documents(folder: Path) -> token_store.TokenStore:
    """The same documents of random tokens on every host."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 400)
    part = (rng.integers(0, 96, lengths.sum()), lengths, np.arange(400).astype(np.uint64))
    token_store.write_store(folder / str(hosts.index()), [part], np.dtype(np.uint16))
    return token_store.TokenStore(folder / str(hosts.index()))


def trained(mesh: jax.sharding.Mesh, texts: token_store.TokenStore) -> dict:
    """Losses, evaluation and rows of a training on that mesh."""
    built, build = [], streams.build
    streams.build = lambda parts, rows, length: built.append(rows) or build(parts, rows, length)
    rows, losses = own_rows(mesh, ROWS), []
    stream, whole = (Stream({"all": texts}, {"all": 1.0}, ROWS, LENGTH, 0, own) for own in (rows, None))
    with jax.set_mesh(mesh):
        step, state, _ = begun(TWO_LAYERS, mesh, make_optimizer(CONFIG.optimizer, STEPS, TWO_LAYERS.axes), CONFIG)
        for number in range(STEPS):
            placed = put_rows(mesh, stream.batch_at(number))
            assert built[-1] == len(rows), "a host built rows of other hosts"
            for name, array in vars(whole.batch_at(number)).items():
                for shard in getattr(placed, name).addressable_shards:
                    assert (np.asarray(shard.data) == array[shard.index]).all(), f"{name} of step {number}"
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]))
        held = {"held out": list(EvaluationBatches(texts, ROWS, LENGTH, own_rows=rows))}
        found = held_out_losses(
            make_evaluation(TWO_LAYERS, np.dtype("float32")), state["params"], mesh, held, np.arange(96)
        )
    evaluation = [value for part in found.values() for value in part.values()]
    return {"losses": losses, "evaluation": evaluation, "rows": rows.tolist()}


if __name__ == "__main__":
    flags, (folder, shape) = place.take_flags("hosts", sys.argv[1:])
    hosts.join(place.find("hosts", flags, {}))
    print("\n" + json.dumps(trained(make_mesh(json.loads(shape)), documents(Path(folder)))))
    hosts.leave()
