"""Learning from rewards: advantages of answers, and the clipped losses of their tokens.

Advantages compare the answers to one prompt, so they are computed before the step, of all answers, in numpy: rewards
are numbers of the host. Then every loss is a sum over tokens with a weight known beforehand.

Shapes: G prompts, N answers to each; B batch, T length, S answers in a row at most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.data.batch import FIELDS, AnswerBatch
from tpullm.model.architecture import Architecture, Tree
from tpullm.model.rows import to_zigzag_order
from tpullm.recipe.schema import PolicyConfig
from tpullm.training.log_probabilities import token_log_probabilities
from tpullm.training.losses import Sum, Sums, sum_by_sequence, values_to_tokens, weighted_sum

HOLDS_IN_REWARD = "rloo"  # the method whose divergence from the start is a part of the reward, not of the loss

jax.tree_util.register_dataclass(
    AnswerBatch, [*FIELDS, "answers", "advantages", "old", "beside"], ["settings", "sequences", "first", "share"]
)
# The largest logarithm of a ratio. Its exponential and its gradient stay finite in float32.
LARGEST = 30.0


def standardized_advantages(rewards_GN: np.ndarray) -> np.ndarray:
    """`(reward - mean) / (deviation + 1e-4)` of the answers to a prompt; the deviation is that of a sample, n - 1.

    A NaN is an answer without a reward: it is left out, and its advantage is 0. So is that of a lone answer.
    """
    centered_GN, answers_G1 = centered_advantages(rewards_GN), _scored_answers(rewards_GN)
    deviation_G1 = np.sqrt(np.sum(np.square(centered_GN), axis=1, keepdims=True) / np.maximum(answers_G1 - 1, 1))
    return (centered_GN / (deviation_G1 + 1e-4)).astype(np.float32)


def centered_advantages(rewards_GN: np.ndarray) -> np.ndarray:
    """`reward - mean` of the answers to a prompt: the deviation does not weigh easy and hard prompts up."""
    rewards_GN = np.asarray(rewards_GN, np.float64)
    mean_G1 = np.nansum(rewards_GN, axis=1, keepdims=True) / np.maximum(_scored_answers(rewards_GN), 1)
    return np.nan_to_num(rewards_GN - mean_G1, nan=0.0).astype(np.float32)


def leave_one_out_advantages(rewards_GN: np.ndarray) -> np.ndarray:
    """`reward - mean of the other answers to the prompt`: a baseline that the answer itself has no part in."""
    answers_G1 = _scored_answers(rewards_GN)
    return (centered_advantages(rewards_GN) * (answers_G1 / np.maximum(answers_G1 - 1, 1))).astype(np.float32)


def _scored_answers(rewards_GN):
    return np.sum(~np.isnan(rewards_GN), axis=1, keepdims=True)


@dataclass(frozen=True)
class Method:
    """What distinguishes the methods.

    advantages: of the rewards of each prompt's answers, `[G, N]`.
    ratio: of what the ratio of probabilities is: each token; the whole answer, as the geometric mean over its tokens;
        or the whole answer, as the product.
    average: each answer counts alike; each token does; or each token does, divided by the most tokens an answer may
        have, so that neither the length of an answer nor that of others changes what a token counts for.
    clip: how far below and above 1 the ratio may go, as the authors chose.
    """

    advantages: Callable[[np.ndarray], np.ndarray]
    ratio: Literal["token", "mean", "product"]
    average: Literal["answers", "tokens", "budget"]
    clip: tuple[float, float]


METHODS = {
    "grpo": Method(standardized_advantages, "token", "answers", (0.2, 0.2)),  # Shao et al. 2024, equation 3
    "dr_grpo": Method(centered_advantages, "token", "budget", (0.2, 0.2)),  # Liu et al. 2025, section 3.2
    "dapo": Method(standardized_advantages, "token", "tokens", (0.2, 0.28)),  # Yu et al. 2025, equation 8
    "gspo": Method(standardized_advantages, "mean", "answers", (3e-4, 4e-4)),  # Zheng et al. 2025, equations 5 to 7
    "rloo": Method(leave_one_out_advantages, "product", "answers", (0.2, 0.2)),  # Ahmadian et al. 2024; clip of trl
}


def policy_loss(
    settings: PolicyConfig, logp_BT, advantages_BT, answers_BT, count, old_BT=None, reference_BT=None, entropy_BT=None
) -> dict[str, Sum]:
    """The loss of answers that were sampled, and what is logged, each a `Sum`.

    Args:
        logp_BT: log-probabilities of the sampled tokens, at the temperature of sampling.
        advantages_BT: of each token's answer.
        answers_BT: int32, the number of the token's answer in its row, 1 to `count`; 0 for tokens that are not trained
            (prompts, padding, what a tool said). An answer without trained tokens is not counted.
        old_BT: log-probabilities when the answers were sampled. None: those of this step, so every ratio is exactly 1.
            Another program of the same model may round otherwise, also one of another number of micro-batches: of a
            model of two layers in float32, `moved` was then up to 0.5.
        reference_BT: log-probabilities under the reference; the divergence from it is logged, and `kl_weight` times it
            is a part of the loss. RLOO has it in the rewards instead.

    Returns:
        `loss`; and means over tokens: `ratio`, `moved` (the share whose ratio is not exactly 1), `clipped_low` and
        `clipped_high` (the shares that have no gradient), `kl` and `entropy` where they are given.
    """
    method, trained_BT = METHODS[settings.kind], (answers_BT > 0).astype(jnp.float32)
    old_BT = jax.lax.stop_gradient(logp_BT) if old_BT is None else old_BT
    ratio_BT = _importance_ratio(method.ratio, jnp.where(answers_BT > 0, logp_BT - old_BT, 0), answers_BT, count)
    low, high = 1 - (settings.clip_low or method.clip[0]), 1 + (settings.clip_high or method.clip[1])
    losses_BT = -jnp.minimum(ratio_BT * advantages_BT, jnp.clip(ratio_BT, low, high) * advantages_BT)
    logged = {
        "ratio": ratio_BT,
        "moved": ratio_BT != 1,
        "clipped_low": (ratio_BT < low) & (advantages_BT < 0),
        "clipped_high": (ratio_BT > high) & (advantages_BT > 0),
    }
    if reference_BT is not None:
        # Estimated at one sampled token: never below 0, no bias (k3 of Schulman 2020).
        difference_BT = jnp.minimum(reference_BT - logp_BT, LARGEST)
        logged["kl"] = jnp.expm1(difference_BT) - difference_BT
        losses_BT += settings.kl_weight * logged["kl"]
    if entropy_BT is not None:
        logged["entropy"] = entropy_BT
    logged = jax.lax.stop_gradient({name: values.astype(jnp.float32) for name, values in logged.items()})
    weights_BT, weight = _token_weights(method.average, trained_BT, answers_BT, count, settings.tokens)
    return {"loss": Sum(jnp.sum(weights_BT * losses_BT), weight)} | {
        name: weighted_sum(values_BT, trained_BT) for name, values_BT in logged.items()
    }


def _importance_ratio(kind: str, log_ratio_BT, answers_BT, count: int):
    """The ratio of each token, or of its answer."""
    if kind != "token":
        log_ratio_BS = sum_by_sequence(log_ratio_BT, answers_BT, count)
        if kind == "mean":
            log_ratio_BS /= jnp.maximum(_answer_lengths(answers_BT, count), 1)
        log_ratio_BT = values_to_tokens(log_ratio_BS, answers_BT)
    return jnp.exp(jnp.minimum(log_ratio_BT, LARGEST))


def _answer_lengths(answers_BT, count):
    """Trained tokens of each answer, `[B, S]`."""
    return sum_by_sequence(jnp.ones(answers_BT.shape, jnp.float32), answers_BT, count)


def _token_weights(average: str, trained_BT, answers_BT, count: int, budget: int):
    """What each token counts for, and by what the sum over the whole batch is divided: answers or tokens."""
    if average == "tokens":
        return trained_BT, jnp.sum(trained_BT)
    lengths_BS = _answer_lengths(answers_BT, count)
    shares_BT = trained_BT / jnp.maximum(values_to_tokens(lengths_BS, answers_BT), 1)
    return (shares_BT if average == "answers" else trained_BT / budget), jnp.sum(lengths_BS > 0, dtype=jnp.float32)


def answer_loss(architecture: Architecture, params: Tree, batch: AnswerBatch, *, dtype, chunks=0, key=None):
    """The summed loss of a batch of answers, and its `Sums`, whose weight is the number of answers or of tokens.

    `told` is what the objective logs, and `surprise`: by how much the mean of -log p of the sampled tokens is above
    their entropy, nats. It is near 0 if decoding and training compute the same. The reference is the model without its
    adapter, whose parameters are among `params`.
    """
    settings, batch = batch.settings, jax.tree.map(to_zigzag_order, batch)
    more = {"dtype": dtype, "temperature": settings.temperature, "chunks": chunks}
    logp_BT, entropy_BT = token_log_probabilities(architecture, params, batch, entropy=True, key=key, **more)
    reference_BT = None
    if settings.kl_weight and architecture.adapter and settings.kind != HOLDS_IN_REWARD:
        base, frozen = Architecture(architecture.config), jax.lax.stop_gradient(architecture.frozen(params))
        reference_BT, _ = token_log_probabilities(base, frozen, batch, **more)
    with jax.named_scope("loss"):
        of_answers = batch.advantages, batch.answers, batch.sequences, None if batch.first else batch.old
        sums = policy_loss(settings, logp_BT, *of_answers, reference_BT, jax.lax.stop_gradient(entropy_BT))
    loss, weight = sums.pop("loss")
    if batch.first:
        # In the mean a sampled token is as surprising as the entropy says, if it was sampled by this very model.
        trained_BT = (batch.answers > 0).astype(jnp.float32)
        sums["surprise"] = weighted_sum(jax.lax.stop_gradient(-logp_BT - entropy_BT), trained_BT)
    return loss, Sums(loss, jnp.zeros_like(loss), weight, None, told=sums)


def answer_count(batch: AnswerBatch):
    """What the loss of a whole batch is divided by: the number of its answers, or of their tokens."""
    if METHODS[batch.settings.kind].average == "tokens":
        return jnp.sum(batch.answers > 0)
    return jnp.sum(jnp.max(batch.answers, axis=1))
