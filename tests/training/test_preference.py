"""Preferences in packed rows, where both answers share the computation of their prompt."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.test_finetune import arrays
from tests.conftest import TINY, copy_tokens
from tests.training.small import ARCHITECTURE, CONFIG, job, mesh, params
from tpullm.cli.main import main
from tpullm.data.answer_rows import tokenized
from tpullm.data.batch import BRANCH, Batch
from tpullm.data.conversations import Pair
from tpullm.data.stream import EvaluationBatches, Stream
from tpullm.data.token_store import TokenStore
from tpullm.model.architecture import Architecture
from tpullm.model.attention import kernels
from tpullm.recipe.schema import AdapterConfig, PreferenceConfig
from tpullm.training.evaluation import held_out
from tpullm.training.metrics import read
from tpullm.training.objectives import preferences as preference
from tpullm.training.objectives.preferences import PAIRED, Answers, answers, fill_references
from tpullm.training.step import batch_loss, make_evaluation

F32, T = jnp.dtype("float32"), 32
SETTINGS = {
    "dpo": PreferenceConfig(beta=0.3, label_smoothing=0.1),
    "per token": PreferenceConfig(per_token=True, beta=2.0),
    "free": PreferenceConfig(reference=False),
    "ipo": PreferenceConfig("ipo"),
    "orpo": PreferenceConfig("orpo", beta=0.5),
    "simpo": PreferenceConfig("simpo", beta=2.0),
}


def some_pairs(count=7, seed=0):
    random = np.random.default_rng(seed)
    ids = lambda most: random.integers(0, CONFIG.vocabulary_size, random.integers(1, most)).tolist()  # noqa: E731
    return [Pair(ids(6), ids(5), ids(7)) for _ in range(count)]


def made(settings=SETTINGS["dpo"], count=24, rows=4):
    """Pairs, and their first batch."""
    pairs = tokenized(list(enumerate(some_pairs(count))), settings, T, "finetune.a")
    return pairs, Stream({"preferences": pairs}, {"preferences": 1.0}, rows, T, 0)


def alone(prompt, answer):
    """A row with one conversation, and weight 1 on its answer."""
    ids = np.array([*prompt, *answer], np.int32)
    n = len(ids) - 1
    pad = lambda values: np.pad(np.asarray(values), (0, T - n))[None].astype(np.int32)  # noqa: E731
    weights = np.pad(np.arange(n) >= len(prompt) - 1, (0, T - n))[None].astype(np.float32)
    return Batch(pad(ids[:-1]), pad(ids[1:]), pad(np.ones(n)), pad(np.arange(n)), weights)


def of_answers_alone(tree, texts):
    """The log-probabilities of the tokens of each answer, which has a row for itself and its prompt."""
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *(alone(*text) for text in texts))
    hidden = ARCHITECTURE.model(tree)(rows.inputs, rows.segment_ids, rows.positions, dtype=F32).hidden
    scores = jax.nn.log_softmax(ARCHITECTURE.model(tree).logits(hidden).astype(jnp.float32))
    own = jnp.sum(jnp.where(rows.targets[..., None] == jnp.arange(CONFIG.vocabulary_size), scores, 0), axis=-1)
    own = jax.reshard(own, jax.P(None, None))
    starts = [len(prompt) - 1 for prompt, _ in texts]
    return [of[start : start + len(answer)] for of, start, (_, answer) in zip(own, starts, texts, strict=True)]


def of_row(architecture, tree, row):
    """The log-probability of an answer that stands alone after its prompt, by the loss of pretraining."""
    return -batch_loss(architecture, tree, row, dtype=F32)[0]


@pytest.mark.parametrize("kernel", ["blocks", "flash", "plain"])
def test_an_answer_beside_another_one_is_as_alone(kernel, monkeypatch):
    monkeypatch.setattr(kernels, "LONGEST_KEPT", 0 if kernel == "flash" else 4096)
    config = dataclasses.replace(CONFIG, attention_softcap=30.0 if kernel == "plain" else 0.0)
    architecture, batch = Architecture(config), made()[1].batch_at(0)
    with jax.set_mesh(mesh()):
        tree = params()
        chosen, rejected = jax.jit(lambda tree: answers(architecture, tree, batch, dtype=F32))(tree)
        one = jax.jit(lambda tree, row: of_row(architecture, tree, row))
        expected = {
            (which, tuple(answer)): float(one(tree, alone(pair.prompt, answer)))
            for pair in some_pairs(24)
            for which, answer in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
    found = {}
    for which, branch, of in (("chosen", 1, chosen), ("rejected", 2, rejected)):
        for row in range(4):
            for number in range(1, batch.sequences + 1):
                own = batch.segment_ids[row] == number + BRANCH * branch
                if own.any():
                    found[(which, tuple(batch.targets[row][own].tolist()))] = float(of.policy[row, number - 1])
                    assert float(of.tokens[row, number - 1]) == own.sum()
    assert len(found) >= 8 and found.keys() <= expected.keys()
    for key, value in found.items():
        assert value == pytest.approx(expected[key], abs=2e-4), key  # sums of up to 60 rounded numbers of size 5


@pytest.mark.parametrize("name", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in [*SETTINGS][1:])])
def test_loss_and_gradient_are_those_of_answers_that_stand_alone(name):
    settings = SETTINGS[name]
    pairs, stream = made(settings, count=6, rows=2)
    pairs.references[:] = np.random.default_rng(1).normal(-20, 3, pairs.references.shape)
    batch = stream.batch_at(0)
    numbers = [piece.document for piece in stream.documents_at(0)]
    all_pairs = some_pairs(6)

    def packed(tree):
        loss, sums = batch_loss(ARCHITECTURE, tree, batch, dtype=F32)
        return loss / sums.weight

    def apart(tree):
        texts = [(all_pairs[number].prompt, answer) for number in numbers for answer in all_pairs[number][1:]]
        policy = jnp.stack([of.sum() for of in of_answers_alone(tree, texts)])
        tokens = jnp.array([len(answer) for _, answer in texts], jnp.float32)
        reference = jnp.asarray(pairs.references[numbers].ravel())
        sides = [
            Answers(policy[side::2], tokens[side::2], reference[side::2] if settings.needs_reference else None)
            for side in (0, 1)
        ]
        more = {
            "dpo": {"label_smoothing": settings.label_smoothing, "per_token": settings.per_token},
            "simpo": {"gamma": settings.gamma},
            "orpo": {"nll": -sides[0].policy / sides[0].tokens},
        }.get(settings.kind, {})
        found = PAIRED[settings.kind](*sides, jnp.ones(len(numbers)), beta=settings.beta, **more)["loss"]
        return found.total / found.weight

    with jax.set_mesh(mesh()):
        ours, expected = (jax.jit(jax.value_and_grad(function))(params()) for function in (packed, apart))
    assert float(ours[0]) == pytest.approx(float(expected[0]), rel=1e-4)
    for found, wanted in zip(*map(jax.tree.leaves, (ours[1], expected[1])), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(np.abs(wanted).max()) + 1e-7)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_every_pair_is_in_an_epoch_once_and_whole(count, seed):
    found = some_pairs(count, seed)
    pairs = tokenized(list(enumerate(found)), SETTINGS["simpo"], T, "finetune.a")
    stream = Stream({"preferences": pairs}, {"preferences": 1.0}, 1, T, seed)
    rows = stream.packings["preferences"].rows
    seen = []
    for step in range(rows):
        batch = stream.batch_at(step)
        segments, targets = batch.segment_ids[0], batch.targets[0].tolist()
        for number in range(1, batch.sequences + 1):
            part = [[t for t, s in zip(targets, segments, strict=True) if s == number + BRANCH * b] for b in (0, 1, 2)]
            seen += [part] if part[1] else []
    wanted = [[pair.prompt[1:], pair.chosen, pair.rejected] for pair in found]
    assert sorted(seen) == sorted(wanted)


def test_references_are_those_of_the_start_and_are_kept(tmp_path):
    pairs, _ = made(count=9, rows=1)
    other = tokenized(list(enumerate(some_pairs(3, seed=5))), pairs.settings, T, "finetune.a")
    fill_references(job(tmp_path, params, T), [pairs, other])
    with jax.set_mesh(mesh()):
        tree = params()
        one = jax.jit(lambda tree, row: of_row(ARCHITECTURE, tree, row))
        for part, texts in ((pairs, some_pairs(9)), (other, some_pairs(3, seed=5))):
            for values, pair in zip(part.references, texts, strict=True):
                expected = [float(one(tree, alone(pair.prompt, answer))) for answer in pair[1:]]
                np.testing.assert_allclose(values, expected, atol=2e-4)
        program = make_evaluation(ARCHITECTURE, F32)
        batches = {"held out": EvaluationBatches(other, 4, T)}
        found = held_out(program, tree, mesh(), batches, np.ones(CONFIG.vocabulary_size))
    assert found["eval_loss"]["held out"] == pytest.approx(np.log(2), abs=1e-5)  # the model is that of the start
    kept = pairs.references.copy()
    pairs.references[:] = 0
    fill_references(job(tmp_path, None, T), [pairs, other])  # read, not computed
    np.testing.assert_array_equal(pairs.references, kept)


@pytest.fixture
def prepared(tiny_run, tmp_path):
    """A recipe whose one stage learns from preferences beside old text, and its run up to that stage."""
    turns = [{"prompt": f"{n}は？", "chosen": f"{n}です。", "rejected": f"{n}だよ。"} for n in range(10, 80)]
    (tmp_path / "likes.jsonl").write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in turns), "utf-8")
    whole = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    train = whole["finetune"]["talk"]["train"] | {"steps": 12, "log_every": 1, "checkpoint": {"every_steps": 6}}
    train["optimizer"] = {"peak_lr": 1e-2, "warmup_steps": 1}
    whole["finetune"] = {
        "polite": {
            "preferences": [str(tmp_path / "likes.jsonl")],
            "documents": {"tenki": 0.25},
            "adapter": dataclasses.asdict(AdapterConfig(rank=4)) | {"targets": ["query", "up"]},
            "train": train,
        }
    }
    recipe, run = tmp_path / "likes.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    copy_tokens(tiny_run, run)
    shutil.copytree(tiny_run / "pretrain", run / "pretrain")
    return recipe, run


@pytest.mark.ci
def test_a_stage_learns_what_is_preferred(prepared):
    """The first loss is log 2; in the end held-out pairs are told apart. Resumed, the bits are the same."""
    recipe, run = prepared
    assert main(["finetune", str(recipe), "--run", str(run)]) == 0
    rows = read(run / "polite" / "metrics.jsonl")
    assert all(row["text_loss"] > 0 for row in rows if "loss" in row)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)  # the adapter is fresh, the references are in float32
    kept = np.load(run / "polite" / preference.FILE)
    assert len(kept) == 2 and all((of < 0).all() for of in kept.values())  # held-out pairs have references too
    last = [row for row in rows if "eval_accuracy" in row][-1]
    assert losses[-1] < 0.6 and last["eval_accuracy"]["preferences"] > 0.8 and rows[-2]["margin"] > 0
    assert "preferences" not in last["eval_bits_per_byte"] and "tenki" in last["eval_bits_per_byte"]
    wanted = arrays(run / "polite", 12)
    (run / "polite" / "manifest.json").unlink()
    shutil.rmtree(run / "polite" / "checkpoints" / "12")
    assert main(["finetune", "--run", str(run)]) == 0
    for name, array in arrays(run / "polite", 12).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.slow
def test_a_training_that_rolls_back_leaves_out_pairs_and_old_text(prepared, monkeypatch):
    """Of the text, batch 3 is bad, which is skipped, and batches 7 and 8: of both streams 6 to 8 are left out."""
    recipe, run = prepared
    never = run.parent / "never"
    shutil.copytree(run, never)
    without, built = Stream.without, Stream._built

    def poisoned(self, start, stop):
        batches = built(self, start, stop)
        for number, batch in zip(self._numbers(np.arange(start, stop)), batches, strict=True):
            if "tenki" in self.sources and number in (3, 7, 8):
                batch.weights[0, 0] = np.nan
        return batches

    monkeypatch.setattr(Stream, "_built", poisoned)
    with monkeypatch.context() as patched:
        patched.setattr(Stream, "without", lambda self, left_out: without(self, [(6, 3)]))
        assert main(["finetune", str(recipe), "--run", str(never)]) == 0
    patient = "--finetune.polite.train.optimizer.skip.patience=2"
    assert main(["finetune", str(recipe), "--run", str(run), patient]) == 0
    wanted = arrays(never / "polite", 12)
    for name, array in arrays(run / "polite", 12).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    (bad,) = sum((row.get("skipped", []) for row in read(run / "polite" / "metrics.jsonl")), [])
    texts = {f"{number:016x}" for number in TokenStore(run / "tokens" / "tenki" / "train").ids.tolist()}
    assert bad["step"] == 4 and texts & {*bad["documents"]} and {*bad["documents"]} - texts, "both are named"
