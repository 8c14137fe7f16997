"""Preferences in packed rows, where both answers share the computation of their prompt."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.test_finetune import arrays
from tests.training.objectives.answers import (
    F32,
    T,
    alone,
    assert_resumed_has_the_same_bits,
    assert_same_arrays,
    assert_same_loss_and_gradients,
    mean_loss,
    of_answers_alone,
    pretrained,
    some_pairs,
    tiny_recipe,
)
from tests.training.small import ARCHITECTURE, CONFIG, job, mesh, params
from tpullm.cli.main import main
from tpullm.data.answer_rows import tokenized
from tpullm.data.batch import BRANCH
from tpullm.data.stream import EvaluationBatches, Stream
from tpullm.data.token_store import TokenStore
from tpullm.model.architecture import Architecture
from tpullm.model.attention import kernels
from tpullm.recipe.schema import PreferenceConfig
from tpullm.training.evaluation import held_out
from tpullm.training.metrics import read
from tpullm.training.objectives import preferences as preference
from tpullm.training.objectives.preferences import PAIRED, Answers, answers, fill_references
from tpullm.training.step import batch_loss, make_evaluation

SETTINGS = {
    "dpo": PreferenceConfig(beta=0.3, label_smoothing=0.1),
    "per token": PreferenceConfig(per_token=True, beta=2.0),
    "free": PreferenceConfig(reference=False),
    "ipo": PreferenceConfig("ipo"),
    "orpo": PreferenceConfig("orpo", beta=0.5),
    "simpo": PreferenceConfig("simpo", beta=2.0),
}


def made(settings=SETTINGS["dpo"], count=24, rows=4):
    """Pairs, and their first batch."""
    pairs = tokenized(list(enumerate(some_pairs(count))), settings, T, "finetune.a")
    return pairs, Stream({"preferences": pairs}, {"preferences": 1.0}, rows, T, 0)


def of_row(architecture, tree, row):
    """The log-probability of an answer that stands alone after its prompt, by the loss of pretraining."""
    return -batch_loss(architecture, tree, row, dtype=F32)[0]


@functools.cache
def each_alone(softcap: float) -> dict:
    """The log-probability of each answer that stands alone after its prompt, by the loss of pretraining."""
    architecture = Architecture(dataclasses.replace(CONFIG, attention_softcap=softcap))
    with jax.set_mesh(mesh()):
        tree, one = params(), jax.jit(lambda tree, row: of_row(architecture, tree, row))
        return {
            (which, tuple(answer)): float(one(tree, alone(pair.prompt, answer)))
            for pair in some_pairs(24)
            for which, answer in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }


@pytest.mark.parametrize("kernel", ["blocks", "flash", "plain"])
def test_an_answer_beside_another_one_is_as_alone(kernel, monkeypatch):
    softcap = 30.0 if kernel == "plain" else 0.0
    expected = each_alone(softcap)
    monkeypatch.setattr(kernels, "LONGEST_KEPT", 0 if kernel == "flash" else 4096)
    architecture = Architecture(dataclasses.replace(CONFIG, attention_softcap=softcap))
    batch = made()[1].batch_at(0)
    with jax.set_mesh(mesh()):
        tree = params()
        chosen, rejected = jax.jit(lambda tree: answers(architecture, tree, batch, dtype=F32))(tree)
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

    def apart(tree):
        texts = [(all_pairs[number].prompt, answer) for number in numbers for answer in all_pairs[number][1:]]
        policy = jnp.stack([of.sum() for of in of_answers_alone(tree, texts)])
        tokens = jnp.array([len(answer) for _, answer in texts], jnp.float32)
        reference = jnp.asarray(pairs.references[numbers].ravel())
        sides = [
            Answers(policy[side::2], tokens[side::2], reference[side::2] if settings.needs_reference else None)
            for side in (0, 1)
        ]
        found = PAIRED[settings.kind](*sides, jnp.ones(len(numbers)), settings)["loss"]
        return found.total / found.weight

    assert_same_loss_and_gradients(mean_loss(batch), apart)


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
    stage = {
        "preferences": [str(tmp_path / "likes.jsonl")],
        "documents": {"tenki": 0.25},
        "adapter": {"rank": 4, "targets": ["query", "up"]},
    }
    return tiny_recipe(tmp_path, {"polite": stage}), pretrained(tiny_run, tmp_path)


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
    assert_resumed_has_the_same_bits(run, polite=(6, 12))


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
    assert_same_arrays(arrays(run / "polite", 12), arrays(never / "polite", 12))
    (bad,) = sum((row.get("skipped", []) for row in read(run / "polite" / "metrics.jsonl")), [])
    texts = {f"{number:016x}" for number in TokenStore(run / "tokens" / "tenki" / "train").ids.tolist()}
    assert bad["step"] == 4 and texts & {*bad["documents"]} and {*bad["documents"]} - texts, "both are named"
