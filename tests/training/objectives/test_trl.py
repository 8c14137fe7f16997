"""Losses, gradients and what is logged are those of trl's own functions on the same numbers.

`record_trl.py` of commit 331fb45e, in this folder, recorded them with trl 1.16.0 and torch 2.13.0 on a CPU. It gives
log-probabilities in place of models; what is then computed is trl's code. Answers are packed here, two in a row, and
lie in a row each there. Both sides compute in float32: a loss is a sum of some ten terms, so 1e-6 is ten roundings; a
gradient is compared with its largest element.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import means, mesh
from tpullm.model.mesh import RULES
from tpullm.recipe.schema import PolicyConfig, PreferenceConfig
from tpullm.training.log_probabilities import log_probabilities
from tpullm.training.losses import Sum, sum_by_sequence, weighted_sum
from tpullm.training.objectives import policy, preferences
from tpullm.training.objectives.distillation import distillation_loss
from tpullm.training.objectives.preferences import Answers

RECORDED = json.loads((Path(__file__).parent / "trl.json").read_text("utf-8"))
INPUTS, CASES = RECORDED["inputs"], RECORDED["cases"]


def packed(values, padding=0.0):
    """Rows of answers `[2N, T]` as `[N + 1, 2T]`: answer n and n + N in row n, and a last row of padding."""
    first, second = np.split(np.asarray(values), 2)
    rows = np.concatenate([first, second], axis=1)
    return np.concatenate([rows, np.full_like(rows[:1], padding)])


def numbered(mask):
    """The number of each token's answer in the packed rows, 0 where there is none."""
    return packed(np.asarray(mask)) * np.repeat([1, 2], len(mask[0])).astype(np.int32)


def assert_same(sums_of, given, case, gradients):
    """The loss and its gradients are trl's; `gradients` are trl's in the shape of ours. Returns what is logged."""

    def loss(given):
        sums = sums_of(given)
        return sums["loss"].total / sums["loss"].weight, sums

    (value, sums), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(found), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())
        assert np.abs(theirs).max() > 1e-3
    return means(jax.device_get(sums))


LOGGED = {
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "nll_loss": "nll",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
}


def assert_logged(ours, theirs, without=()):
    compared = {name: LOGGED[name] for name in theirs if LOGGED.get(name) in ours and name not in without}
    assert compared
    for name, own in compared.items():
        np.testing.assert_allclose(ours[own], theirs[name], rtol=1e-5, atol=1e-7, err_msg=name)


KINDS = {"cdpo": "dpo", "dpo_per_token": "dpo", "dpo_without_reference": "dpo"}


def pair_loss(name, case):
    """A case's objective as a function of the packed log-probabilities of tokens."""
    weights, options = np.r_[np.ones(6), 0].astype(np.float32), {"per_token": name == "dpo_per_token"}
    options |= {"label_smoothing": case.get("label_smoothing", 0.0), "gamma": case.get("simpo_gamma", 0.0)}
    settings = PreferenceConfig(KINDS.get(name, name), beta=case["beta"], **options)

    given, referenced = INPUTS["preferences"], name not in ("dpo_without_reference", "simpo", "orpo")

    def loss(logp_BT):
        policy, tokens = (sum_by_sequence(x, numbered(given["mask"]), 2).T for x in (logp_BT, jnp.ones_like(logp_BT)))
        reference = packed(np.array(given["reference"], np.float32)[:, None]).T if referenced else (None, None)
        chosen, rejected = map(Answers, policy, tokens, reference)
        sums = preferences.PAIRED[settings.kind](chosen, rejected, weights, settings)
        if name == "orpo":  # trl has the mean over the tokens of all chosen answers
            nll = weighted_sum(-chosen.policy / (jnp.sum(chosen.tokens) / 6), weights)
            sums |= {"nll": nll, "loss": Sum(sums["loss"].total - sums["nll"].total + nll.total, 6.0)}
        return sums

    return loss


@pytest.mark.parametrize("name", [name for name in CASES["preferences"] if not name.startswith("kto")])
def test_pairs(name):
    """trl logs sums over tokens as rewards even where the loss is of means; ours are what the loss compares."""
    case, logp = CASES["preferences"][name], packed(np.array(INPUTS["preferences"]["logp"], np.float32))
    logged = assert_same(pair_loss(name, case), logp, case, [packed(case["gradients"][0])])
    if name not in ("dpo_per_token", "ipo"):
        assert_logged(logged, case["logged"])


@pytest.mark.parametrize("name", ["kto", "kto_negative_kl"])
def test_kto(name):
    """The recorded divergence is above 0 in one case and below in the other, where it counts as 0."""
    given, case = INPUTS["preferences"], CASES["preferences"][name]
    logp, mask = np.array(given["logp"], np.float32), np.array(given["mask"])
    whole, desirable = np.ones(12, np.float32), np.array(given["desirable"])
    mismatched = (np.array(values, np.float32) for values in (given["mismatched"], case["mismatched_reference"]))
    kl = preferences.kto_kl(Answers(next(mismatched), mask.sum(1), next(mismatched)), whole)
    assert (kl.total > 0) == (name == "kto")

    def sums(logp):
        answers = Answers((logp * mask).sum(1), mask.sum(1), np.array(given["reference"], np.float32))
        options = {key: case[key] for key in ("beta", "desirable_weight", "undesirable_weight")}
        return preferences.kto(answers, desirable, whole, PreferenceConfig("kto", **options), kl.total / kl.weight)

    ours, theirs = assert_same(sums, logp, case, [np.array(case["gradients"][0])]), case["logged"]
    np.testing.assert_allclose(max(kl.total / kl.weight, 0), theirs["kl"], rtol=1e-6)
    np.testing.assert_allclose(ours["reward_desirable"], theirs["rewards/chosen"], rtol=1e-5)
    np.testing.assert_allclose(ours["reward_undesirable"], theirs["rewards/rejected"], rtol=1e-5)
    ratios = (logp * mask).sum(1) - np.array(given["reference"], np.float32)
    assert ours["accuracy"] == pytest.approx(np.mean((ratios > theirs["kl"]) == desirable))


@pytest.mark.parametrize("name", CASES["policy"])
def test_policies(name):
    """Ratios of whole answers count each answer once in trl's shares, and each token once in ours."""
    given, case = INPUTS["policy"], CASES["policy"][name]
    arrays = {key: packed(np.array(given[key], np.float32)) for key in ("logp", "old", "reference", "entropy")}
    advantages_BT = packed(np.array(given["advantages"], np.float32)[:, None] * np.ones_like(given["mask"]))
    (low, high), kind = case["clip"], name.split()[0]
    settings = PolicyConfig(kind, tokens=10, clip_low=low, clip_high=high, kl_weight=case["beta"])
    old_BT = arrays["old"] if case["old"] else None

    def sums(logp_BT):
        given_BT = logp_BT, advantages_BT, numbered(given["mask"]), 2
        return policy.policy_loss(settings, *given_BT, old_BT, arrays["reference"], arrays["entropy"])

    logged = assert_same(sums, arrays["logp"], case, [packed(case["gradients"][0])])
    shares = ("clip_ratio/low_mean", "clip_ratio/high_mean")
    assert_logged(logged, case["logged"], () if policy.METHODS[kind].ratio == "token" else shares)
    if case["old"]:
        assert sum(case["logged"][share] for share in shares) > 0, "nothing was clipped"


@pytest.mark.parametrize("name", CASES["advantages"])
def test_advantages(name):
    """Of rewards of which some are missing. trl computes the deviation in float32, and 1e-4 beside it."""
    found = getattr(policy, f"{name}_advantages")(np.array(INPUTS["policy"]["rewards"]))
    np.testing.assert_allclose(found, CASES["advantages"][name], rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32


QUICK = ("bucket 0.0", "bucket 0.3", "whole 0.3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES["distillation"]]
)
def test_distillation(name):
    """From hidden states: the log-probabilities of the teacher's tokens, with softcap and temperature, are ours too."""
    given, case = INPUTS["distillation"], CASES["distillation"][name]
    teacher = np.array(case["teacher"], np.float32)
    every = np.broadcast_to(np.arange(teacher.shape[1]), teacher.shape)
    ids = jnp.asarray(every if name.startswith("whole") else given["ids"], jnp.int32)
    inputs = tuple(np.array(given[key], np.float32) for key in ("hidden", "table"))

    def sums(inputs):
        hidden, table = (jax.reshard(x, spec) for x, spec in zip((inputs[0][None], inputs[1]), SPECS, strict=True))
        arguments = case["softcap"], case["temperature"]
        student, _ = log_probabilities(hidden, table, jax.reshard(ids[None], PER_CHOICE), *arguments)
        sums = distillation_loss(student, teacher[None], jnp.ones(student.shape[:2]), beta=case["beta"])
        return sums | {"loss": Sum(sums["loss"].total, 1.0)}  # trl gives the sum

    with jax.set_mesh(mesh()):
        assert_same(sums, inputs, case, [np.array(gradient) for gradient in case["gradients"]])


SPECS = RULES.spec("batch", "time", "width"), RULES.spec("vocabulary", "embed")
PER_CHOICE = RULES.spec("batch", "time", None)
