"""Prompts with answers by chance, an answer that stands alone, and runs whose last stages a test tunes."""

import shutil
from collections import namedtuple
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from tests.cli.test_finetune import arrays
from tests.conftest import TINY, copy_tokens
from tests.training.small import ARCHITECTURE, CONFIG, mesh, params
from tpullm.cli.main import main
from tpullm.data.batch import Batch
from tpullm.training.step import batch_loss

F32, T = jnp.dtype("float32"), 32
MOST = 48  # texts of a test
Pair = namedtuple("Pair", "prompt chosen rejected")


def _ids(random, most):
    return random.integers(0, CONFIG.vocabulary_size, random.integers(1, most)).tolist()


def some_pairs(count=7, seed=0):
    random = np.random.default_rng(seed)
    return [Pair(_ids(random, 6), _ids(random, 5), _ids(random, 7)) for _ in range(count)]


def some_judged(count=7, seed=0):
    """Hash of the prompt, ids of prompt and answer, judgement; two in a row have the same prompt."""
    random = np.random.default_rng(seed)
    prompts = [_ids(random, 8) for _ in range(-(-count // 2))]
    return [(hash(tuple(prompts[n // 2])) % 2**64, prompts[n // 2], _ids(random, 9), bool(n % 3)) for n in range(count)]


def some_sampled(groups=3, answers=4, seed=0, longest=9):
    random = np.random.default_rng(seed)
    prompts = [_ids(random, 7) for _ in range(groups)]
    return prompts, [[_ids(random, longest + 1) for _ in range(answers)] for _ in range(groups)]


def alone(prompt, answer):
    """A row with one conversation, and weight 1 on its answer."""
    ids = np.array([*prompt, *answer], np.int32)
    n = len(ids) - 1
    pad = lambda values: np.pad(np.asarray(values), (0, T - n))[None].astype(np.int32)  # noqa: E731
    weights = np.pad(np.arange(n) >= len(prompt) - 1, (0, T - n))[None].astype(np.float32)
    return Batch(pad(ids[:-1]), pad(ids[1:]), pad(np.ones(n)), pad(np.arange(n)), weights)


@partial(jax.jit, static_argnums=0)
def log_softmax(architecture, tree, rows):
    """Of each next token, `[B, T, V]`; a plain computation."""
    model = architecture.model(tree)
    hidden = model(rows.inputs, rows.segment_ids, rows.positions, dtype=F32).hidden
    return jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32))


def of_answers_alone(texts, architecture=ARCHITECTURE):
    """The log-probabilities of the tokens of each answer, which has a row for itself and its prompt.

    Always in `MOST` rows, so that one program does for all.
    """
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *(alone(*text) for text in texts))
    padded = jax.tree.map(lambda array: np.pad(array, ((0, MOST - len(texts)), (0, 0))), rows)
    with jax.set_mesh(mesh()):
        scores = np.asarray(log_softmax(architecture, params(), padded))[: len(texts)]
    own = np.take_along_axis(scores, rows.targets[..., None], axis=-1)[..., 0]
    starts = [len(prompt) - 1 for prompt, _ in texts]
    return [of[start : start + len(answer)] for of, start, (_, answer) in zip(own, starts, texts, strict=True)]


def sums_of(batch):
    """The mean loss of a batch, and its sums."""
    with jax.set_mesh(mesh()):
        loss, sums = jax.jit(lambda tree: batch_loss(ARCHITECTURE, tree, batch, dtype=F32))(params())
    return float(loss / sums.weight), sums


def recipe(folder, stages, steps=12, model=(), pretrain=(), **train):
    """A recipe as the tiny run's, but with these stages of tuning: by name, their keys; `train` is of each."""
    whole = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    common = whole["finetune"]["talk"]["train"] | {"steps": steps, "log_every": 1, "checkpoint": {"every_steps": 6}}
    common |= {"optimizer": {"peak_lr": 1e-2, "warmup_steps": 1}} | train
    whole["model"] |= dict(model)
    whole["pretrain"] |= dict(pretrain)
    whole["finetune"] = {name: {**keys, "train": common | keys.get("train", {})} for name, keys in stages.items()}
    (folder / "stages.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return folder / "stages.yaml"


def pretrained(tiny_run, folder):
    """The tiny run up to its stages of tuning."""
    copy_tokens(tiny_run, folder / "run")
    shutil.copytree(tiny_run / "pretrain", folder / "run" / "pretrain")
    return folder / "run"


def assert_resumed_has_the_same_bits(run, **stages):
    """Stages by name that go back to a checkpoint (and that end at a step): `stage=(begin, end)`."""
    wanted = {stage: arrays(run / stage, end) for stage, (_, end) in stages.items()}
    for stage, (begin, _) in stages.items():
        (run / stage / "manifest.json").unlink()
        for checkpoint in (run / stage / "checkpoints").iterdir():
            if checkpoint.name.isdigit() and int(checkpoint.name) > begin:
                shutil.rmtree(checkpoint)
    assert main(["finetune", "--run", str(run)]) == 0
    for stage, (_, end) in stages.items():
        assert_same_arrays(arrays(run / stage, end), wanted[stage])


def assert_same_arrays(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
