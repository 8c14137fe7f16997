"""Objectives of preferences, from the log-probabilities of whole answers.

Arrays have an element for each pair (for KTO: for each answer) and any one shape. `weights` are 1, or 0 for an element
that only fills the shape. Each loss is the mean over pairs, so its weight is their number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.training.objectives.sums import Sum, weighted_sum


class Answers(NamedTuple):
    """The chosen or the rejected answers.

    policy, reference: the log-probability of each whole answer under the model that trains and under the one that it
        started from, nats, float32. `reference` is None for objectives without one.
    tokens: how many the answer has.
    """

    policy: jax.Array
    tokens: jax.Array
    reference: jax.Array | None = None


def dpo(
    chosen: Answers, rejected: Answers, weights, *, beta: float, label_smoothing=0.0, per_token=False
) -> dict[str, Sum]:
    """Direct preference optimization (Rafailov et al. 2023, equation 7).

    Without references it is the reference-free form: the reference is then the uniform distribution, up to a constant.

    Args:
        beta: how strongly the policy is held at the reference.
        label_smoothing: the probability that a label is wrong (cDPO, Mitchell 2023).
        per_token: compare means over tokens and not sums, so that a longer answer weighs no more.
    """
    scores = [beta * _log_ratio(answers, per_token) for answers in (chosen, rejected)]
    return _sums(_smoothed(scores[0] - scores[1], label_smoothing), *scores, weights)


def ipo(chosen: Answers, rejected: Answers, weights, *, beta: float) -> dict[str, Sum]:
    """Identity preference optimization (Azar et al. 2023, equation 17; `beta` is their tau), of means over tokens.

    The paper's sums would make the target of the margin depend on the length; its authors' results are of means.
    """
    scores = [_log_ratio(answers, per_token=True) for answers in (chosen, rejected)]
    losses = jnp.square(scores[0] - scores[1] - 1 / (2 * beta))
    return _sums(losses, *(beta * score for score in scores), weights)


def simpo(chosen: Answers, rejected: Answers, weights, *, beta: float, gamma: float) -> dict[str, Sum]:
    """Simple preference optimization (Meng et al. 2024, equation 6): means over tokens, no reference.

    Args:
        gamma: the margin by which the chosen answer is to win, in units of the reward.
    """
    scores = [beta * _per_token(answers, answers.policy) for answers in (chosen, rejected)]
    return _sums(-jax.nn.log_sigmoid(scores[0] - scores[1] - gamma), *scores, weights)


def orpo(chosen: Answers, rejected: Answers, weights, *, beta: float, nll) -> dict[str, Sum]:
    """Odds ratio preference optimization (Hong et al. 2024, equations 6 and 7): no reference.

    Args:
        beta: the weight of the odds ratio beside the likelihood (their lambda).
        nll: of each chosen text, nats a token: its negative log-probability divided by its tokens (the paper), or by
            the mean tokens of the chosen texts of the whole batch (trl: a mean over tokens). Which tokens count is the
            caller's choice: the answer's, or (trl, the authors' code) also the prompt's.
    """
    # An answer that is certain has infinite odds; 1e-7 is the least difference from 1 that float32 has.
    means = [jnp.minimum(_per_token(answers, answers.policy), -1e-7) for answers in (chosen, rejected)]
    log_odds = [mean - _log_complement(mean) for mean in means]
    odds_losses = -jax.nn.log_sigmoid(log_odds[0] - log_odds[1])
    sums = _sums(nll + beta * odds_losses, *(beta * mean for mean in means), weights)
    return sums | {"nll": weighted_sum(nll, weights), "odds_loss": weighted_sum(odds_losses, weights)}


def kto(
    answers: Answers, desirable, weights, *, beta: float, kl, desirable_weight=1.0, undesirable_weight=1.0
) -> dict[str, Sum]:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, equations 7 and 8): answers that need no partner.

    Args:
        desirable: bool, for each answer.
        kl: a scalar, how far the policy is from the reference: the mean of `kto_kl` over the whole batch, so it has to
            be known before the first micro-batch. It has no gradient; below 0 it counts as 0.

    `accuracy` is the share of answers that are judged right: a good one is likelier by more than `kl` than for the
    reference, a bad one is not.
    """
    kl = jax.lax.stop_gradient(jnp.maximum(kl, 0))
    log_ratios = _log_ratio(answers, per_token=False)
    gains = beta * jnp.where(desirable, log_ratios - kl, kl - log_ratios)
    losses = jnp.where(desirable, desirable_weight, undesirable_weight) * jax.nn.sigmoid(-gains)
    rewards = jax.lax.stop_gradient(beta * log_ratios)
    return {
        "loss": weighted_sum(losses, weights),
        "accuracy": weighted_sum((gains > 0).astype(jnp.float32), weights),
        "reward_desirable": weighted_sum(rewards, weights * desirable),
        "reward_undesirable": weighted_sum(rewards, weights * ~desirable),
    }


def kto_kl(mismatched: Answers, weights) -> Sum:
    """The divergence from the reference, estimated on answers to other prompts than their own; its mean is `kl`.

    In the authors' code each prompt has the answer of the next example in the batch; here it keeps one answer.
    """
    return weighted_sum(_log_ratio(mismatched, per_token=False), weights)


PAIRED = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo}


def _log_ratio(answers: Answers, per_token: bool):
    difference = answers.policy if answers.reference is None else answers.policy - answers.reference
    return _per_token(answers, difference) if per_token else difference


def _per_token(answers: Answers, values):
    return values / jnp.maximum(answers.tokens, 1)


def _smoothed(margins, label_smoothing: float):
    if not label_smoothing:
        return -jax.nn.log_sigmoid(margins)
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(margins) - label_smoothing * jax.nn.log_sigmoid(-margins)


def _log_complement(log_p):
    """`log(1 - p)`. Near p = 1 one form cancels, near 0 the other (Mächler 2012)."""
    near_one = log_p > -0.6931472
    # Each form gets only what it is made for: the gradient of the one that is not taken would be 0 times infinity.
    high, low = jnp.where(near_one, log_p, -0.5), jnp.where(near_one, -1.0, log_p)
    return jnp.where(near_one, jnp.log(-jnp.expm1(high)), jnp.log1p(-jnp.exp(low)))


def _sums(losses, chosen_rewards, rejected_rewards, weights) -> dict[str, Sum]:
    """The loss and what is logged: the rewards that the policy implies, their margin, how often the chosen one wins."""
    chosen, rejected = jax.lax.stop_gradient((chosen_rewards, rejected_rewards))
    terms = {
        "loss": losses,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": (chosen > rejected).astype(jnp.float32),
    }
    return {name: weighted_sum(values, weights) for name, values in terms.items()}
