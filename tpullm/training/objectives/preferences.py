"""Learning from preferences and judged answers, by the log-probabilities of whole answers.

The objectives are functions of arrays with an element for each pair (for KTO: for each answer), of any one shape.
`weights` are 1, or 0 for an element that only fills the shape. Each loss is the mean over pairs, so its weight is their
number. The references are those of the model that tuning starts from, computed once.

Shapes: B batch, T length, S pairs in a row at most.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.data import packing
from tpullm.data.answer_rows import BAD, GOOD, MISMATCHED, Pairs
from tpullm.data.batch import BRANCH, FIELDS, PairBatch
from tpullm.model.architecture import Architecture, Tree
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import fetch_whole, own_rows, put_rows, to_zigzag_order
from tpullm.recipe.schema import PreferenceConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.log import progress
from tpullm.training.job import Job
from tpullm.training.log_probabilities import token_log_probabilities
from tpullm.training.losses import Sum, Sums, sum_by_sequence, weighted_sum

FILE = "references.npz"  # in a stage that learns preferences

jax.tree_util.register_dataclass(PairBatch, [*FIELDS, "references", "kl", "beside"], ["settings", "sequences", "share"])


class Answers(NamedTuple):
    """The chosen or the rejected answers.

    policy, reference: the log-probability of each whole answer under the model that trains and under the one that it
        started from, nats, float32. `reference` is None for objectives without one.
    tokens: how many the answer has.
    """

    policy: jax.Array
    tokens: jax.Array
    reference: jax.Array | None = None


def dpo(chosen: Answers, rejected: Answers, weights, settings: PreferenceConfig) -> dict[str, Sum]:
    """Direct preference optimization (Rafailov et al. 2023, equation 7); `label_smoothing` is cDPO (Mitchell 2023).

    Without references it is the reference-free form: the reference is then the uniform distribution, up to a constant.
    """
    scores = [settings.beta * _reference_log_ratio(answers, settings.per_token) for answers in (chosen, rejected)]
    margins, wrong = scores[0] - scores[1], settings.label_smoothing
    losses = -(1 - wrong) * jax.nn.log_sigmoid(margins)
    if wrong:
        losses -= wrong * jax.nn.log_sigmoid(-margins)
    return _preference_sums(losses, *scores, weights)


def ipo(chosen: Answers, rejected: Answers, weights, settings: PreferenceConfig) -> dict[str, Sum]:
    """Identity preference optimization (Azar et al. 2023, equation 17; `beta` is their tau), of means over tokens.

    The paper's sums would make the target of the margin depend on the length; its authors' results are of means.
    """
    scores = [_reference_log_ratio(answers, per_token=True) for answers in (chosen, rejected)]
    losses = jnp.square(scores[0] - scores[1] - 1 / (2 * settings.beta))
    return _preference_sums(losses, *(settings.beta * score for score in scores), weights)


def simpo(chosen: Answers, rejected: Answers, weights, settings: PreferenceConfig) -> dict[str, Sum]:
    """Simple preference optimization (Meng et al. 2024, equation 6): means over tokens, no reference."""
    scores = [settings.beta * _mean_per_token(answers, answers.policy) for answers in (chosen, rejected)]
    return _preference_sums(-jax.nn.log_sigmoid(scores[0] - scores[1] - settings.gamma), *scores, weights)


def orpo(chosen: Answers, rejected: Answers, weights, settings: PreferenceConfig) -> dict[str, Sum]:
    """Odds ratio preference optimization (Hong et al. 2024, equations 6 and 7): no reference.

    `nll` is of each chosen answer, nats a token, as in the paper. trl has the mean over the tokens of all chosen texts,
    and with the authors' code it counts the prompt too.
    """
    nll = -chosen.policy / jnp.maximum(chosen.tokens, 1)
    # An answer that is certain has infinite odds; 1e-7 is the least difference from 1 that float32 has.
    means = [jnp.minimum(_mean_per_token(answers, answers.policy), -1e-7) for answers in (chosen, rejected)]
    log_odds = [mean - _log_complement(mean) for mean in means]
    odds_losses = -jax.nn.log_sigmoid(log_odds[0] - log_odds[1])
    sums = _preference_sums(nll + settings.beta * odds_losses, *(settings.beta * mean for mean in means), weights)
    return sums | {"nll": weighted_sum(nll, weights), "odds_loss": weighted_sum(odds_losses, weights)}


def kto(answers: Answers, desirable, weights, settings: PreferenceConfig, kl) -> dict[str, Sum]:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, equations 7 and 8): answers that need no partner.

    Args:
        desirable: bool, for each answer.
        kl: a scalar, how far the policy is from the reference: the mean of `kto_kl` over the whole batch, so it has to
            be known before the first micro-batch. It has no gradient; below 0 it counts as 0.

    `accuracy` is the share of answers that are judged right: a good one is likelier by more than `kl` than for the
    reference, a bad one is not.
    """
    kl, beta = jax.lax.stop_gradient(jnp.maximum(kl, 0)), settings.beta
    log_ratios = _reference_log_ratio(answers, per_token=False)
    gains = beta * jnp.where(desirable, log_ratios - kl, kl - log_ratios)
    losses = jnp.where(desirable, settings.desirable_weight, settings.undesirable_weight) * jax.nn.sigmoid(-gains)
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
    return weighted_sum(_reference_log_ratio(mismatched, per_token=False), weights)


PAIRED = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo}


def _reference_log_ratio(answers: Answers, per_token: bool):
    difference = answers.policy if answers.reference is None else answers.policy - answers.reference
    return _mean_per_token(answers, difference) if per_token else difference


def _mean_per_token(answers: Answers, values):
    return values / jnp.maximum(answers.tokens, 1)


def _log_complement(log_p):
    """`log(1 - p)`. Near p = 1 one form cancels, near 0 the other (Mächler 2012)."""
    near_one = log_p > -0.6931472
    # Each form gets only what it is made for: the gradient of the one that is not taken would be 0 times infinity.
    high, low = jnp.where(near_one, log_p, -0.5), jnp.where(near_one, -1.0, log_p)
    return jnp.where(near_one, jnp.log(-jnp.expm1(high)), jnp.log1p(-jnp.exp(low)))


def _preference_sums(losses, chosen_rewards, rejected_rewards, weights) -> dict[str, Sum]:
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


def answers_of_pairs(architecture: Architecture, params: Tree, batch: PairBatch, *, dtype, chunks=0, key=None):
    """The answers of each pair, `[B, S]`: chosen and rejected ones, and mismatched ones if they are judged.

    Where there is none it has no tokens.
    """
    batch = jax.tree.map(to_zigzag_order, batch)
    logp_BT, _ = token_log_probabilities(architecture, params, batch, dtype=dtype, chunks=chunks, key=key)
    with jax.named_scope("loss"):
        found = []
        for branch in (GOOD, BAD, MISMATCHED) if batch.settings.kind == "kto" else (GOOD, BAD):
            own_BT = jnp.where(batch.segment_ids // BRANCH == branch, batch.segment_ids % BRANCH, 0)
            columns = logp_BT * batch.weights, batch.weights, batch.references
            policy, tokens, reference = (sum_by_sequence(of, own_BT, batch.sequences) for of in columns)
            found.append(Answers(policy, tokens, reference))
    return found


def pair_loss(architecture: Architecture, params: Tree, batch: PairBatch, *, dtype, chunks=0, key=None):
    """The summed loss of a batch of pairs, and its `Sums`, whose weight is the number of pairs.

    `correct` counts the pairs whose chosen answer has the higher reward, and the judged answers that are judged right.
    """
    found = answers_of_pairs(architecture, params, batch, dtype=dtype, chunks=chunks, key=key)
    settings = batch.settings
    if settings.kind == "kto":
        good, bad, mismatched = found
        each = Answers(*(one + other for one, other in zip(good, bad, strict=True)))  # one of the two has no tokens
        weights = (each.tokens > 0).astype(jnp.float32)
        if batch.kl is None:
            total, count = kto_kl(mismatched, weights)
            kl = total / jnp.maximum(count, 1)
        else:
            kl = jnp.max(batch.kl)
        sums = kto(each, good.tokens > 0, weights, settings, kl)
        sums["kl"] = weighted_sum(jnp.full_like(weights, jax.lax.stop_gradient(kl)), weights)
    else:
        if not settings.needs_reference:
            found = [of._replace(reference=None) for of in found]
        sums = PAIRED[settings.kind](*found, (found[0].tokens > 0).astype(jnp.float32), settings)
    loss, weight = sums.pop("loss")
    correct = sums.pop("accuracy").total
    return loss, Sums(loss, jnp.zeros_like(loss), weight, correct, told=sums)


def pair_count(batch: PairBatch):
    """What the loss of a whole batch is divided by: the number of its pairs or judged answers."""
    return jnp.sum(jnp.max(batch.segment_ids % BRANCH, axis=1))


def kto_divergence(architecture: Architecture, params: Tree, batch: PairBatch, *, dtype, chunks=0, key=None) -> Sum:
    """What KTO's `kl` is the mean of, of a part of the batch."""
    good, bad, mismatched = answers_of_pairs(architecture, params, batch, dtype=dtype, chunks=chunks, key=key)
    return kto_kl(mismatched, (good.tokens + bad.tokens > 0).astype(jnp.float32))


def fill_references(job: Job, parts: Sequence[Pairs]) -> None:
    """Compute the references of all answers once, by the model that tuning starts from, and keep them in the stage.

    Args:
        parts: whose `references` are filled. `job.load` reads the model's parameters, which are held for this time
            alone.
    """
    if not any(part.settings.needs_reference for part in parts):
        return
    file = job.directory / FILE
    if hosts.broadcast("references", file.exists):
        with storage.local_copy(file).open("rb") as opened:
            for part, values in zip(parts, np.load(opened).values(), strict=True):
                part.references[:] = values
        return
    # In micro-batches of the training.
    mesh, config, architecture = job.mesh, job.config, Architecture(job.model)
    count, length = config.batch_size // config.accumulation, config.sequence_length
    options = {"dtype": compute_dtype(config.compute), "chunks": config.loss_chunks}
    run = jax.jit(lambda *of: jnp.stack([found.policy for found in answers_of_pairs(architecture, *of, **options)]))
    own = own_rows(mesh, count)
    with jax.set_mesh(mesh), progress("references", sum(len(part.ids) for part in parts), "pairs") as advance:
        params = job.load()
        for part in parts:
            part.references[:] = 0
            packed = packing.pack(part.lengths, length, seed=0, moving=False)
            for first in range(0, packed.rows, count):
                rows = np.arange(first, min(first + count, packed.rows))
                segments = packed.segments(rows, np.zeros_like(rows))
                mine = jax.tree.map(lambda array: array[own], part.build(segments, count, length))
                sums = fetch_whole(mesh, run(params, put_rows(mesh, mine)))
                slots = np.concatenate([np.arange(pairs) for pairs in np.bincount(segments.rows)])
                part.references[segments.documents] = sums[:, segments.rows, slots].T
                advance(len(segments.documents))
    hosts.on_first("references", storage.write_arrays, file, *(part.references for part in parts))
