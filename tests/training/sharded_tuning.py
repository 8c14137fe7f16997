"""Run by `tests/eight_devices.py`: losses of tuning on each mesh, as one JSON object.

Arguments: what is tuned (of `TUNED`), and the meshes.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.objectives.answers import some_judged, some_pairs, some_sampled
from tests.training.sharded_losses import EXPERT_MESHES, asked_for
from tests.training.small import ARCHITECTURE, CONFIG, FIRST_DENSE, batch
from tpullm.data.answer_rows import answers_in_rows, judged, tokenized
from tpullm.data.batch import TaughtBatch
from tpullm.data.stream import Stream
from tpullm.model.adapter import with_magnitudes
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.quantized import change_each_matrix, quantized
from tpullm.model.rows import put_rows
from tpullm.recipe import schema
from tpullm.training.objectives.distillation import Teacher
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state, make_step, with_params

DORA = schema.AdapterConfig(rank=4, magnitude=True, b_learning_rate=4.0)
TUNED = {
    "experts": Architecture(FIRST_DENSE.config, schema.AdapterConfig(rank=4)),
    "pairs and dora": Architecture(CONFIG, DORA),
    "judged pairs": ARCHITECTURE,
    # Wide enough for whole blocks on each device.
    "qlora": Architecture(
        dataclasses.replace(CONFIG, layers=1, width=128, head_width=32, mlp_width=128),
        dataclasses.replace(DORA, quantize_base="nf4"),
    ),
    "own answers": Architecture(CONFIG, DORA),
    "taught": ARCHITECTURE,
}
STEPS = 3


def answers(number: int):
    """Answers to 8 prompts, packed."""
    prompts, said = some_sampled(8, 6, seed=number)
    advantages = np.random.default_rng(number).normal(size=(8, 6))
    return answers_in_rows(prompts, said, advantages, schema.PolicyConfig("dapo", tokens=9, kl_weight=0.1), 32, [16])[0]


def batches(name: str) -> list:
    if "answers" in name:
        return [answers(number) for number in range(STEPS)]
    if "pairs" not in name:
        return [batch(rows=16, seed=number) for number in range(STEPS)]
    if "judged" in name:
        pairs = judged(some_judged(144), schema.PreferenceConfig("kto", beta=0.5), 32, "finetune.a")
    else:
        pairs = tokenized(list(enumerate(some_pairs(96))), schema.PreferenceConfig(beta=0.5), 32, "finetune.a")
    pairs.references[:] = np.random.default_rng(0).normal(-20, 3, pairs.references.shape)
    stream = Stream({"preferences": pairs}, {"preferences": 1.0}, 16, 32, 0)
    found = [stream.batch_at(number) for number in range(STEPS)]
    if "judged" not in name:
        return found
    return [dataclasses.replace(of, beside=batch(rows=16, seed=n), share=0.2) for n, of in enumerate(found)]


def taught(mesh) -> list:
    """Rows of which a teacher on the same mesh has said how likely the next tokens are."""
    load = jax.jit(ARCHITECTURE.init, out_shardings=ARCHITECTURE.shardings(mesh))
    settings = schema.TeacherConfig("teacher", "jsd", top=8, temperature=0.1)
    teacher = Teacher(settings, ARCHITECTURE, lambda: load(jax.random.key(1)), mesh, jnp.float32, 96)
    params = teacher.load()
    found = []
    for rows in batches(""):
        ids, logps = teacher.says(params, rows)
        found.append(TaughtBatch(**vars(rows), ids=ids, logps=logps, settings=settings))
    return found


def losses(name: str, shape: dict[str, int], accumulation: int = 1) -> dict[str, list]:
    """Loss and gradient norm of each of the first steps."""
    architecture = TUNED[name]
    kind = architecture.adapter.quantize_base if architecture.adapter else ""
    mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
    adamw = schema.OptimizerConfig(peak_lr=1e-2, warmup_steps=1)
    config = schema.TrainConfig(batch_size=16, accumulation=accumulation, optimizer=adamw)
    found = {"loss": [], "grad_norm": []}
    with jax.set_mesh(mesh):
        axes = architecture.trained(architecture.axes)
        optimizer = make_optimizer(adamw, 20, axes, adapter=architecture.adapter)
        target = abstract_state(architecture, optimizer, mesh)
        at_rest = architecture.frozen(architecture.at_rest(mesh, jnp.float32))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (target, at_rest))

        def begin(key):
            params = architecture.init(key)
            frozen, trained = architecture.frozen(params), architecture.trained(params)
            if kind:
                frozen = change_each_matrix(frozen, lambda matrix, axis: quantized(matrix, kind, axis))
            trained = with_magnitudes(frozen, trained) if architecture.adapter else trained
            return with_params(trained, optimizer), frozen

        state, frozen = jax.jit(begin, out_shardings=shardings)(jax.random.key(0))
        step = make_step(architecture, optimizer, config, jnp.float32, seed=0)
        for rows in taught(mesh) if name == "taught" else batches(name):
            state, metrics = step(state, put_rows(mesh, rows), frozen)
            for key in found:
                found[key].append(metrics[key].tolist())
            told = metrics.get("told", {})
            assert told.get("moved", 0) == 0 and told.get("ratio", 1) == 1, "a ratio of a first step is not exactly 1"
        kept = jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted, state, shardings[0])
        assert all(jax.tree.leaves(kept)), "the step changed the sharding of a part of the state"
    return found


if __name__ == "__main__":
    name, *asked = sys.argv[1:]
    print(json.dumps({of: losses(name, EXPERT_MESHES[mesh], count) for of, mesh, count in asked_for(asked)}))
