"""Preferences in packed rows, where both answers share the computation of their prompt."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.objectives import answers as tiny
from tests.training.small import CONFIG, job, mesh, params
from tpullm.cli.main import main
from tpullm.data.answer_rows import tokenized
from tpullm.data.batch import BRANCH
from tpullm.data.stream import Stream
from tpullm.model.architecture import Architecture
from tpullm.model.attention import kernels
from tpullm.recipe.schema import PreferenceConfig
from tpullm.training.metrics import read_rows
from tpullm.training.objectives import preferences as preference
from tpullm.training.objectives.preferences import PAIRED, Answers, answers_of_pairs, fill_references

SETTINGS = {
    "dpo": PreferenceConfig(beta=0.3, label_smoothing=0.1),
    "free": PreferenceConfig(reference=False),
}


def made(settings=SETTINGS["dpo"], count=24, rows=4):
    pairs = tokenized(list(enumerate(tiny.some_pairs(count))), settings, tiny.T, "finetune.a")
    return pairs, Stream({"preferences": pairs}, {"preferences": 1.0}, rows, tiny.T, 0)


@pytest.mark.parametrize("kernel", ["blocks", "flash", "plain"])
def test_an_answer_beside_another_one_is_as_alone(kernel, monkeypatch):
    softcap, said = 30.0 if kernel == "plain" else 0.0, tiny.some_pairs(24)
    monkeypatch.setattr(kernels, "LONGEST_KEPT", 0 if kernel == "flash" else 4096)
    architecture = Architecture(dataclasses.replace(CONFIG, attention_softcap=softcap))
    batch = made()[1].batch_at(0)
    with jax.set_mesh(mesh()):
        both = jax.jit(lambda tree: answers_of_pairs(architecture, tree, batch, dtype=tiny.F32))(params())
    alone = tiny.of_answers_alone([(pair.prompt, answer) for pair in said for answer in pair[1:]], architecture)
    expected = {(side, *said[n][1 + side]): alone[2 * n + side].sum() for n in range(24) for side in (0, 1)}
    found = {}
    for side, row, number in np.ndindex(2, 4, batch.sequences):
        own = batch.segment_ids[row] == number + 1 + BRANCH * (side + 1)
        if own.any():
            found[(side, *batch.targets[row][own].tolist())] = float(both[side].policy[row, number])
            assert float(both[side].tokens[row, number]) == own.sum()
    assert len(found) >= 8 and found.keys() <= expected.keys()
    for key, value in found.items():
        assert value == pytest.approx(expected[key], abs=2e-4), key  # sums of up to 60 rounded numbers of size 5


@pytest.mark.parametrize("name", ["dpo", pytest.param("free", marks=pytest.mark.slow)])
def test_the_loss_is_that_of_answers_that_stand_alone(name):
    """`test_trl_model.py` has the other kinds, and gradients."""
    settings, said = SETTINGS[name], tiny.some_pairs(6)
    pairs, stream = made(settings, count=6, rows=2)
    pairs.references[:] = np.random.default_rng(1).normal(-20, 3, pairs.references.shape)
    numbers = [piece.document for piece in stream.documents_at(0)]
    alone = [tiny.of_answers_alone([(said[n].prompt, said[n][1 + side]) for n in numbers]) for side in (0, 1)]
    policies = [np.array([of.sum() for of in of_side]) for of_side in alone]
    tokens = [np.array([len(of) for of in of_side], np.float32) for of_side in alone]
    references = pairs.references[numbers].T if settings.needs_reference else (None, None)
    sides = map(Answers, policies, tokens, references)
    expected = PAIRED[settings.kind](*sides, np.ones(len(numbers)), settings)["loss"]
    assert tiny.sums_of(stream.batch_at(0))[0] == pytest.approx(float(expected.total / expected.weight), rel=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_every_pair_is_in_an_epoch_once_and_whole(count, seed):
    found = tiny.some_pairs(count, seed)
    pairs = tokenized(list(enumerate(found)), SETTINGS["dpo"], tiny.T, "finetune.a")
    stream = Stream({"preferences": pairs}, {"preferences": 1.0}, 1, tiny.T, seed)
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
    # The first of the same.
    other = tokenized(list(enumerate(tiny.some_pairs(3))), pairs.settings, tiny.T, "finetune.a")
    fill_references(job(tmp_path, params, tiny.T), [pairs, other])
    alone = tiny.of_answers_alone([(pair.prompt, answer) for pair in tiny.some_pairs(9) for answer in pair[1:]])
    for part in (pairs, other):
        expected = [of.sum() for of in alone[: 2 * len(part.references)]]
        np.testing.assert_allclose(part.references.ravel(), expected, atol=2e-4)
    kept = pairs.references.copy()
    pairs.references[:] = 0
    fill_references(job(tmp_path, None, tiny.T), [pairs, other])  # read, not computed
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
    return tiny.recipe(tmp_path, {"polite": stage}), tiny.pretrained(tiny_run, tmp_path)


@pytest.mark.ci
def test_a_stage_learns_what_is_preferred(prepared):
    """The first loss is log 2; in the end held-out pairs are told apart. Resumed, the bits are the same."""
    recipe, run = prepared
    assert main(["finetune", str(recipe), "--run", str(run)]) == 0
    rows = read_rows(run / "polite" / "metrics.jsonl")
    assert all(row["text_loss"] > 0 for row in rows if "loss" in row)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)  # the adapter is fresh, the references are in float32
    kept = np.load(run / "polite" / preference.FILE)
    assert len(kept) == 2 and all((of < 0).all() for of in kept.values())  # held-out pairs have references too
    last = [row for row in rows if "eval_accuracy" in row][-1]
    assert losses[-1] < 0.6 and last["eval_accuracy"]["preferences"] > 0.8 and rows[-2]["margin"] > 0
    assert "preferences" not in last["eval_bits_per_byte"] and "tenki" in last["eval_bits_per_byte"]
    tiny.assert_resumed_has_the_same_bits(run, polite=(6, 12))
