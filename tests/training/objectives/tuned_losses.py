"""Run by `tests/eight_devices.py`: losses of a small Llama with an adapter, and the adapter's gradients, as JSON.

Arguments: a mesh, and the cases (none is all). Batches are built by the code that builds them in training.
`trl_model.npz` has what trl computed of the same answers.

The numbers are functions of names (`tests.formats.huggingface.small`), so that only what trl computed is kept: by trl
1.16.0 with peft 0.21.2, transformers 5.24.0 and torch 2.15.0 on a CPU. `record_trl_model.py` of commit e13a209d, in
this folder, did it: it gives all of this to trl's trainers, with tokens that were likelier by a normal deviation of
0.25 nats when they were sampled.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from tests.formats.huggingface.small import LLAMA, as_ours, published, weight
from tests.training.sharded_losses import MESHES
from tests.training.small import job
from tpullm.data import packing
from tpullm.data.answer_rows import answers_in_rows, judged, tokenized
from tpullm.data.batch import AnswerBatch, PairBatch
from tpullm.formats.huggingface import adapters, tensors
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import AdapterConfig, PolicyConfig, PreferenceConfig
from tpullm.training.objectives.preferences import fill_references
from tpullm.training.step import batch_loss

ROWS = 8
FILE = Path(__file__).parent / "trl_model.npz"
# Sizes that a mesh of 2 by 2 by 2 can split.
MODEL = {"model_type": "llama", **LLAMA, "vocab_size": 64, "num_hidden_layers": 2, "head_dim": 6}
ADAPTER = AdapterConfig(rank=2, alpha=3.0)
PROMPTS, LENGTH, TOKENS = 8, 48, 7

PREFERENCES = {
    "dpo": PreferenceConfig("dpo", beta=0.3),
    "dpo by token": PreferenceConfig("dpo", beta=3.0, per_token=True),
    "ipo": PreferenceConfig("ipo", beta=0.4),
    "simpo": PreferenceConfig("simpo", beta=2.0, gamma=0.7),
    "orpo": PreferenceConfig("orpo", beta=0.25),
    "kto": PreferenceConfig("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.7),
}
OPTIONS = {"tokens": TOKENS, "answers": 2, "temperature": 0.8}
POLICIES = {
    "grpo": PolicyConfig("grpo", clip_low=0.2, clip_high=0.2, kl_weight=0.04, **OPTIONS),
    "dr_grpo": PolicyConfig("dr_grpo", clip_low=0.2, clip_high=0.2, **OPTIONS),
    "dapo": PolicyConfig("dapo", clip_low=0.2, clip_high=0.28, **OPTIONS),
    "gspo": PolicyConfig("gspo", clip_low=0.03, clip_high=0.04, kl_weight=0.04, **OPTIONS),
    "rloo": PolicyConfig("rloo", clip_low=0.3, clip_high=0.4, **OPTIONS),
}


@functools.cache
def model():
    """Our architecture without an adapter, its family, and the published tensors."""
    return published(MODEL)


@functools.cache
def tuned() -> tuple[Architecture, dict, dict[str, np.ndarray]]:
    """Our architecture with the adapter, the parameters without it, and those of the adapter by flat name."""
    plain, family, found = model()
    architecture = Architecture(plain.config, ADAPTER)
    wanted = tensors.flat(architecture.trained(architecture.shapes))
    return architecture, as_ours(plain, family, found), {key: weight(key, of.shape) for key, of in wanted.items()}


def in_a_row(flat: dict[str, np.ndarray]) -> np.ndarray:
    """Numbers of the adapter's matrices as one vector, in the order of PEFT's names."""
    plain, family, _ = model()
    with TemporaryDirectory() as folder:
        adapters.write(Path(folder), family, flat, ADAPTER, tensors.flat(plain.shapes), "base")
        found = load_file(Path(folder) / adapters.WEIGHTS)
    return np.concatenate([found[name].ravel() for name in sorted(found)])


def conversations(case: str) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts, and two answers to each.

    trl's ORPO counts the likelihood of the prompt too, and that of the chosen answers over all their tokens; ours
    counts each answer alike. So there its prompts are one token, and its chosen answers have one length.
    """
    random = np.random.default_rng(7)
    ids = lambda length: [int(one) for one in random.integers(3, MODEL["vocab_size"], length)]  # noqa: E731
    lengths = random.integers(1, TOKENS + 1, (PROMPTS, 2))
    lengths[0, 0] = TOKENS
    if case == "orpo":
        lengths[:, 0] = 5
    prompts = [[1, *ids(0 if case == "orpo" else random.integers(1, 6))] for _ in range(PROMPTS)]
    return prompts, [[ids(one), ids(other)] for one, other in lengths]


def pairs_of(case: str, load, mesh) -> PairBatch:
    """All preferences or judged answers, compared with the model without its adapter."""
    prompts, answers = conversations(case)
    settings = PREFERENCES[case]
    if case == "kto":
        found = [(n, prompts[n], answers[n][0], n % 3 > 0) for n in range(PROMPTS)]
        pairs = judged(found, settings, LENGTH, "finetune.a")
    else:
        found = [(n, (prompts[n], *answers[n])) for n in range(PROMPTS)]
        pairs = tokenized(found, settings, LENGTH, "finetune.a")
    with TemporaryDirectory() as folder:
        fill_references(job(Path(folder), load, LENGTH, ROWS, mesh, tuned()[0].config), [pairs])
    packed = packing.pack(pairs.lengths, LENGTH, seed=0, moving=False)
    assert packed.rows < ROWS, "some rows are padding, and in some are several pairs"
    return pairs.build(packed.segments(np.arange(packed.rows), np.zeros(packed.rows, np.int64)), ROWS, LENGTH)


def answers_of(case: str) -> AnswerBatch:
    """All answers, with how likely they were when they were sampled."""
    prompts, answers = conversations(case)
    advantages = np.random.default_rng(8).normal(size=(PROMPTS, 2)).astype(np.float32)
    batch, places = answers_in_rows(prompts, answers, advantages, POLICIES[case], LENGTH, [ROWS])
    was = np.load(FILE)[f"{case} old"]
    said = [len(answer) for of_prompt in answers for answer in of_prompt]
    batch.old[*places.T] = np.concatenate([of[:length] for of, length in zip(was, said, strict=True)])
    return dataclasses.replace(batch, first=False)


def losses(shape: dict[str, int], cases: list[str]) -> dict[str, dict]:
    architecture, params, adapter = tuned()
    mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
    found = {}
    with jax.set_mesh(mesh):
        shardings = architecture.shardings(mesh)
        whole = jax.tree.map(jax.device_put, architecture.whole(tensors.nested(adapter), params), shardings)
        trained, frozen = architecture.trained(whole), architecture.frozen(whole)

        @jax.jit
        def run(trained, frozen, batch):
            def loss(trained):
                total, sums = batch_loss(architecture, architecture.whole(trained, frozen), batch, dtype=jnp.float32)
                return total / jax.lax.stop_gradient(sums.weight)

            return jax.value_and_grad(loss)(trained)

        for case in cases or (*PREFERENCES, *POLICIES):
            batch = answers_of(case) if case in POLICIES else pairs_of(case, lambda: frozen, mesh)
            loss, gradient = run(trained, frozen, put_rows(mesh, batch))
            found[case] = {"loss": loss.item(), "gradient": in_a_row(tensors.flat(jax.device_get(gradient))).tolist()}
    return found


if __name__ == "__main__":
    mesh, *cases = sys.argv[1:]
    print(json.dumps(losses(MESHES[mesh], cases)))
