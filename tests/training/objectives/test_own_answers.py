"""Learning from rewards: answers in packed rows, their loss, and a stage that learns a rule."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from tests.training.objectives import answers as tiny
from tpullm.cli.main import main
from tpullm.data.answer_rows import answers_in_rows
from tpullm.recipe.schema import PolicyConfig
from tpullm.training.metrics import read_rows
from tpullm.training.objectives.policy import policy_loss


def made(kind="grpo", seed=0, **settings):
    """Prompts, answers, advantages, and their batch with the places of the tokens."""
    prompts, answers = tiny.some_sampled(seed=seed)
    advantages = np.random.default_rng(seed + 1).normal(size=(3, 4)).astype(np.float32)
    settings = PolicyConfig(kind, prompts=3, answers=4, tokens=9, **settings)
    return prompts, answers, advantages, *answers_in_rows(prompts, answers, advantages, settings, tiny.T, [2, 4, 8])


def test_the_loss_of_answers_beside_others_is_that_of_answers_alone():
    """`test_trl.py` has the objective itself, and `test_trl_model.py` its gradient in packed rows."""
    prompts, answers, advantages, batch, places = made(updates=2)
    texts = [(prompt, answer) for prompt, of in zip(prompts, answers, strict=True) for answer in of]
    expected = tiny.of_answers_alone(texts)
    old = np.random.default_rng(3).normal(-6, 0.3, len(places)).astype(np.float32)
    batch.old[*places.T] = old
    of_answers = np.split(old, np.cumsum([len(answer) for _, answer in texts])[:-1])
    longest = max(len(answer) for _, answer in texts)
    padded = lambda values: np.stack([np.pad(value, (0, longest - len(value))) for value in values])  # noqa: E731
    trained = padded([np.ones(len(answer), np.int32) for _, answer in texts])
    each = advantages.reshape(-1, 1) * trained
    total, weight = policy_loss(batch.settings, padded(expected), each, trained, 1, padded(of_answers))["loss"]
    found, _ = tiny.sums_of(dataclasses.replace(batch, first=False))
    assert found == pytest.approx(float(total / weight), rel=1e-4)


RULE = {
    "prompts": ["tenki"],
    "rewards": [{"name": "length", "most": 4, "edge": 60, "weight": 2.0}, {"name": "no_phrases", "phrases": ["!"]}],
    "policy": {"prompts": 8, "answers": 8, "tokens": 16},
    "adapter": {"rank": 4, "targets": ["query", "up"]},
}
TWICE = {"policy": RULE["policy"] | {"updates": 2, "kl_weight": 0.01}, "documents": {"tenki": 0.25}}


@pytest.fixture(scope="module")
def ruled(tiny_run, tmp_path_factory):
    """Runs whose last stage learns to answer briefly, made when asked for: learned from `once` or `twice`."""

    @functools.cache
    def made(stage):
        folder = tmp_path_factory.mktemp(stage)
        # As many held-out prompts as answers to a batch: they are decoded by the same programs.
        train = {"evaluate_rows": 64, "batch_size": 16, "optimizer": {"peak_lr": 3e-2, "warmup_steps": 1}}
        train |= {"checkpoint": {"every_steps": 1, "keep": 9}}
        recipe = tiny.recipe(folder, {stage: RULE | (TWICE if stage == "twice" else {})}, steps=8, **train)
        run = tiny.pretrained(tiny_run, folder)
        assert main(["finetune", str(recipe), "--run", str(run)]) == 0
        return run

    return made


@pytest.mark.ci
@pytest.mark.parametrize("stage", ["once", "twice"])
def test_a_stage_learns_what_is_rewarded_and_says_how(ruled, stage):
    rows = read_rows(ruled(stage) / stage / "metrics.jsonl")
    rewards = [row["rewards"]["length"] for row in rows if "rewards" in row]
    half = len(rewards) // 2
    # Beside old text eight steps are too few: the reward of `twice` is within the noise of 64 answers.
    assert stage == "twice" or np.mean(rewards[half:]) > np.mean(rewards[:half]) + 0.02
    judged = [row for row in rows if "eval_reward" in row]
    assert judged[-1]["eval_reward"].keys() == {"length", "no_phrases", "sum"} and judged[-1]["eval_loss"]
    assert len(judged[-1]["eval_answers"]) == 8
    told = [row for row in rows if "ratio" in row]
    assert len(told) == 8 and all("accuracy" not in row and row["entropy"] > 0 for row in told)
    again = [stage == "twice" and number % 2 == 1 for number in range(8)]  # the answers of the step before
    assert [row["moved"] > 0 for row in told] == again == [row["ratio"] != 1 for row in told]
    assert [row["step"] for row in rows if "rewards" in row] == [n + 1 for n in range(8) if not again[n]]
    assert stage == "once" or all(row["text_loss"] > 0 for row in told)


@pytest.mark.ci
def test_resumed_it_ends_with_the_same_bits(ruled, tmp_path):
    stage, run = "twice", tmp_path / "run"
    shutil.copytree(ruled(stage), run)
    before = read_rows(run / stage / "metrics.jsonl")
    tiny.assert_resumed_has_the_same_bits(run, **{stage: (3, 8)})
    after = read_rows(run / stage / "metrics.jsonl")
    sampled = lambda rows: [json.dumps(row) for row in rows if "rewards" in row]  # noqa: E731
    assert sampled(after) == sampled(before)
