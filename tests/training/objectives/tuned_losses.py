"""Run by `tests/eight_devices.py`: our losses of `tuned_model`, and the gradients of its adapter, as JSON.

Arguments: the meshes. Batches are built by the code that builds them in training.
"""

import dataclasses
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.objectives.tuned_model import (
    FILE,
    LENGTH,
    POLICIES,
    PREFERENCES,
    PROMPTS,
    advantages,
    conversations,
    flat_of,
    good,
    in_a_row,
    tuned,
)
from tests.training.sharded_losses import MESHES
from tests.training.small import job
from tpullm.data import packing
from tpullm.data.answer_rows import judged, laid_out, tokenized
from tpullm.data.batch import AnswerBatch, PairBatch
from tpullm.data.conversations import Pair
from tpullm.formats.huggingface import tensors
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put
from tpullm.training.objectives.preferences import fill_references
from tpullm.training.step import batch_loss

ROWS = 8


def pairs_of(case: str, load, mesh) -> PairBatch:
    """All preferences or judged answers, compared with the model without its adapter."""
    prompts, answers = conversations(case)
    settings = PREFERENCES[case]
    if case == "kto":
        found = [(n, prompts[n], answers[n][0], bool(good()[n])) for n in range(PROMPTS)]
        pairs = judged(found, settings, LENGTH, "finetune.a")
    else:
        found = [(n, Pair(prompts[n], *answers[n])) for n in range(PROMPTS)]
        pairs = tokenized(found, settings, LENGTH, "finetune.a")
    with TemporaryDirectory() as folder:
        fill_references(job(Path(folder), load, LENGTH, ROWS, mesh, tuned()[0].config), [pairs])
    packed = packing.pack(pairs.lengths, LENGTH, seed=0, moving=False)
    assert packed.rows < ROWS, "some rows are padding, and in some are several pairs"
    return pairs.build(packed.segments(np.arange(packed.rows), np.zeros(packed.rows, np.int64)), ROWS, LENGTH)


def answers_of(case: str) -> AnswerBatch:
    """All answers, with how likely they were when they were sampled."""
    prompts, answers = conversations(case)
    batch, places = laid_out(prompts, answers, advantages(), POLICIES[case], LENGTH, [ROWS])
    was = np.load(FILE)[f"{case} old"]
    said = [len(answer) for of_prompt in answers for answer in of_prompt]
    batch.old[*places.T] = np.concatenate([of[:length] for of, length in zip(was, said, strict=True)])
    return dataclasses.replace(batch, first=False)


def losses(shape: dict[str, int]) -> dict[str, dict]:
    """By case."""
    architecture, params, adapter = tuned()
    mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
    found = {}
    with jax.set_mesh(mesh):
        shardings = architecture.shardings(mesh)
        whole = architecture.whole(tensors.nested(adapter), params)
        whole = jax.tree.map(jax.device_put, whole, shardings)
        trained, frozen = architecture.trained(whole), architecture.frozen(whole)

        @jax.jit
        def run(trained, frozen, batch):
            def loss(trained):
                total, sums = batch_loss(architecture, architecture.whole(trained, frozen), batch, dtype=jnp.float32)
                return total / jax.lax.stop_gradient(sums.weight)

            return jax.value_and_grad(loss)(trained)

        for case in (*PREFERENCES, *POLICIES):
            batch = answers_of(case) if case in POLICIES else pairs_of(case, lambda: frozen, mesh)
            loss, gradient = run(trained, frozen, put(mesh, batch))
            found[case] = {"loss": loss.item(), "gradient": in_a_row(flat_of(gradient)).tolist()}
    return found


if __name__ == "__main__":
    print(json.dumps({name: losses(MESHES[name]) for name in sys.argv[1:]}))
