"""A small Llama with an adapter, and answers to tune it with, as trl had them when `trl_model.npz` was recorded.

The numbers are functions of names (`tests.formats.huggingface.small`), so that only what trl computed is kept: by trl
1.16.0 with peft 0.21.2, transformers 5.24.0 and torch 2.15.0 on a CPU. `record_trl_model.py` of commit e13a209d, in
this folder, did it: it gives all of this to trl's trainers, with tokens that were likelier by a normal deviation of
0.25 nats when they were sampled.
"""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from safetensors.numpy import load_file

from tests.formats.huggingface.small import LLAMA, as_ours, published, weight
from tpullm.formats.huggingface import adapters, tensors
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import AdapterConfig, PolicyConfig, PreferenceConfig

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


def good() -> np.ndarray:
    """Which of the first answers are judged good, for KTO; `[prompts]`."""
    return np.arange(PROMPTS) % 3 > 0


def advantages() -> np.ndarray:
    """`[prompts, 2]`"""
    return np.random.default_rng(8).normal(size=(PROMPTS, 2)).astype(np.float32)


def flat_of(tree) -> dict[str, np.ndarray]:
    """Arrays on the host, by flat name."""
    return tensors.flat(jax.device_get(tree))
