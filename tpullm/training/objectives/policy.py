"""Objectives of rewards: advantages of answers, and the clipped losses of their tokens.

Advantages compare the answers to one prompt, so they are computed before the step, of all answers, in numpy: rewards
are numbers of the host. Then every loss is a sum over tokens with a weight known beforehand.

Shapes: G prompts, N answers to each; B batch, T length, S answers in a row at most.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.training.objectives.sums import Sum, sum_by_sequence, to_tokens, weighted_sum

# The largest logarithm of a ratio. Its exponential and its gradient stay finite in float32.
LARGEST = 30.0


@dataclass(frozen=True)
class Method:
    """What distinguishes the methods.

    advantages: a key of `ADVANTAGES`.
    ratio: of what the ratio of probabilities is: each token; the whole answer, as the geometric mean over its tokens;
        or the whole answer, as the product.
    average: each answer counts alike; each token does; or each token does, divided by the most tokens an answer may
        have, so that neither the length of an answer nor that of others changes what a token counts for.
    clip: how far below and above 1 the ratio may go, as the authors chose.
    """

    advantages: Literal["standardized", "centered", "leave_one_out"]
    ratio: Literal["token", "mean", "product"]
    average: Literal["answers", "tokens", "budget"]
    clip: tuple[float, float]


METHODS = {
    "grpo": Method("standardized", "token", "answers", (0.2, 0.2)),  # Shao et al. 2024, equation 3
    "dr_grpo": Method("centered", "token", "budget", (0.2, 0.2)),  # Liu et al. 2025, section 3.2
    "dapo": Method("standardized", "token", "tokens", (0.2, 0.28)),  # Yu et al. 2025, equation 8
    "gspo": Method("standardized", "mean", "answers", (3e-4, 4e-4)),  # Zheng et al. 2025, equations 5 to 7
    "rloo": Method("leave_one_out", "product", "answers", (0.2, 0.2)),  # Ahmadian et al. 2024, clipped as in trl
}


def policy_loss(
    method: Method,
    logp_BT,
    advantages_BT,
    answers_BT,
    count: int,
    *,
    clip: tuple[float, float],
    budget: int = 0,
    old_BT=None,
    reference_BT=None,
    kl_weight: float = 0.0,
    entropy_BT=None,
) -> dict[str, Sum]:
    """The loss of answers that were sampled, and what is logged, each a `Sum`.

    Args:
        logp_BT: log-probabilities of the sampled tokens, at the temperature of sampling.
        advantages_BT: of each token's answer.
        answers_BT: int32, the number of the token's answer in its row, 1 to `count`; 0 for tokens that are not trained
            (prompts, padding, what a tool said). An answer without trained tokens is not counted.
        clip: as `Method.clip`.
        budget: the most tokens of an answer, for `average: budget`.
        old_BT: log-probabilities when the answers were sampled. None: those of this step, so every ratio is exactly 1.
            Another program of the same model may round otherwise, also one of another number of micro-batches: of a
            model of two layers in float32, `moved` was then up to 0.5.
        reference_BT: log-probabilities under the reference; the divergence from it is logged, and `kl_weight` times it
            is a part of the loss. RLOO has it in the rewards instead.

    Returns:
        `loss`; and means over tokens: `ratio`, `moved` (the share whose ratio is not exactly 1), `clipped_low` and
        `clipped_high` (the shares that have no gradient), `kl` and `entropy` where they are given.
    """
    trained_BT = (answers_BT > 0).astype(jnp.float32)
    old_BT = jax.lax.stop_gradient(logp_BT) if old_BT is None else old_BT
    ratio_BT = _ratio(method.ratio, jnp.where(answers_BT > 0, logp_BT - old_BT, 0), answers_BT, count)
    low, high = 1 - clip[0], 1 + clip[1]
    losses_BT = -jnp.minimum(ratio_BT * advantages_BT, jnp.clip(ratio_BT, low, high) * advantages_BT)
    logged = {
        "ratio": ratio_BT,
        "moved": ratio_BT != 1,
        "clipped_low": (ratio_BT < low) & (advantages_BT < 0),
        "clipped_high": (ratio_BT > high) & (advantages_BT > 0),
    }
    if reference_BT is not None:
        logged["kl"] = k3(logp_BT, reference_BT)
        losses_BT += kl_weight * logged["kl"]
    if entropy_BT is not None:
        logged["entropy"] = entropy_BT
    logged = jax.lax.stop_gradient({name: values.astype(jnp.float32) for name, values in logged.items()})
    weights_BT, weight = _weights(method.average, trained_BT, answers_BT, count, budget)
    return {"loss": Sum(jnp.sum(weights_BT * losses_BT), weight)} | {
        name: weighted_sum(values_BT, trained_BT) for name, values_BT in logged.items()
    }


def k3(logp, reference):
    """The divergence from the reference, estimated at one sampled token: never below 0, no bias (Schulman 2020)."""
    difference = jnp.minimum(reference - logp, LARGEST)
    return jnp.expm1(difference) - difference


def _ratio(kind: str, log_ratio_BT, answers_BT, count: int):
    """The ratio of each token, or of its answer."""
    if kind != "token":
        log_ratio_BS = sum_by_sequence(log_ratio_BT, answers_BT, count)
        if kind == "mean":
            log_ratio_BS /= jnp.maximum(_lengths(answers_BT, count), 1)
        log_ratio_BT = to_tokens(log_ratio_BS, answers_BT)
    return jnp.exp(jnp.minimum(log_ratio_BT, LARGEST))


def _lengths(answers_BT, count):
    """Trained tokens of each answer, `[B, S]`."""
    return sum_by_sequence(jnp.ones(answers_BT.shape, jnp.float32), answers_BT, count)


def _weights(average: str, trained_BT, answers_BT, count: int, budget: int):
    """What each token counts for, and by what the sum over the whole batch is divided: answers or tokens."""
    if average == "tokens":
        return trained_BT, jnp.sum(trained_BT)
    assert budget or average != "budget", "the most tokens of an answer"
    lengths_BS = _lengths(answers_BT, count)
    shares_BT = trained_BT / jnp.maximum(to_tokens(lengths_BS, answers_BT), 1)
    return (shares_BT if average == "answers" else trained_BT / budget), jnp.sum(lengths_BS > 0, dtype=jnp.float32)


def standardized(rewards_GN: np.ndarray) -> np.ndarray:
    """`(reward - mean) / (deviation + 1e-4)` of the answers to a prompt; the deviation is that of a sample, n - 1.

    A NaN is an answer without a reward: it is left out, and its advantage is 0. So is that of a lone answer.
    """
    centered_GN, answers_G1 = centered(rewards_GN), _scored(rewards_GN)
    deviation_G1 = np.sqrt(np.sum(np.square(centered_GN), axis=1, keepdims=True) / np.maximum(answers_G1 - 1, 1))
    return (centered_GN / (deviation_G1 + 1e-4)).astype(np.float32)


def centered(rewards_GN: np.ndarray) -> np.ndarray:
    """`reward - mean` of the answers to a prompt: the deviation does not weigh easy and hard prompts up."""
    rewards_GN = np.asarray(rewards_GN, np.float64)
    mean_G1 = np.nansum(rewards_GN, axis=1, keepdims=True) / np.maximum(_scored(rewards_GN), 1)
    return np.nan_to_num(rewards_GN - mean_G1, nan=0.0).astype(np.float32)


def leave_one_out(rewards_GN: np.ndarray) -> np.ndarray:
    """`reward - mean of the other answers to the prompt`: a baseline that the answer itself has no part in."""
    answers_G1 = _scored(rewards_GN)
    return (centered(rewards_GN) * (answers_G1 / np.maximum(answers_G1 - 1, 1))).astype(np.float32)


ADVANTAGES = {"standardized": standardized, "centered": centered, "leave_one_out": leave_one_out}


def _scored(rewards_GN):
    return np.sum(~np.isnan(rewards_GN), axis=1, keepdims=True)


def without_signal(rewards_GN: np.ndarray) -> np.ndarray:
    """Whether the answers to a prompt have equal rewards, bool `[G]`: then nothing is learned. DAPO samples it anew."""
    known_GN = ~np.isnan(rewards_GN)
    highest_G = np.max(np.where(known_GN, rewards_GN, -np.inf), axis=1)
    return highest_G - np.min(np.where(known_GN, rewards_GN, np.inf), axis=1) <= 0


def overlong_penalty(lengths: np.ndarray, most: int, margin: int) -> np.ndarray:
    """A reward that falls from 0 to -1 over the last `margin` of `most` tokens (Yu et al. 2025, equation 13)."""
    within = np.minimum(0, (most - margin - np.asarray(lengths)) / max(margin, 1))
    return np.where(np.asarray(lengths) > most, -1.0, within).astype(np.float32)
