"""The loss of a batch of answers that the model gave itself, and the log-probabilities of their tokens.

Shapes: B batch, T length.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tpullm.data.batch import AnswerBatch
from tpullm.model.architecture import Architecture
from tpullm.model.rows import to_zigzag_order
from tpullm.recipe.schema import PolicyConfig
from tpullm.training.log_probabilities import log_probabilities
from tpullm.training.losses import Sums
from tpullm.training.objectives.policy import METHODS, policy_loss
from tpullm.training.objectives.sums import weighted_sum

Tree = Any
HOLDS_IN_REWARD = "rloo"  # the method whose divergence from the start is a part of the reward, not of the loss

jax.tree_util.register_dataclass(
    AnswerBatch,
    ["inputs", "targets", "segment_ids", "positions", "weights", "answers", "advantages", "old", "beside"],
    ["settings", "sequences", "first", "share"],
)


def clip_of(settings: PolicyConfig) -> tuple[float, float]:
    """How far below and above 1 a ratio counts."""
    low, high = METHODS[settings.kind].clip
    return settings.clip_low or low, settings.clip_high or high


def token_log_probabilities(
    architecture: Architecture, params: Tree, batch: AnswerBatch, *, dtype, chunks=0, entropy=False, key=None
):
    """The log-probability of each target at the temperature of sampling, and the entropy there or None, `[B, T]`.

    Args:
        batch: in the order that the model reads it in (`to_zigzag_order`).
    """
    config, model = architecture.config, architecture.model(params)
    out = model(batch.inputs, batch.segment_ids, batch.positions, dtype=dtype, key=key, branched=True)
    with jax.named_scope("loss"):
        table, temperature = model.output_parameter(), batch.settings.temperature
        options = (config.logit_softcap, temperature, config.gradients, chunks, entropy)
        return log_probabilities(out.hidden, table, batch.targets, *options)


def answer_loss(architecture: Architecture, params: Tree, batch: AnswerBatch, *, dtype, chunks=0, key=None):
    """The summed loss of a batch of answers, and its `Sums`, whose weight is the number of answers or of tokens.

    `told` is what the objective logs, and `surprise`: by how much the mean of -log p of the sampled tokens is above
    their entropy, nats. It is near 0 if decoding and training compute the same. The reference is the model without its
    adapter, whose parameters are among `params`.
    """
    settings, batch = batch.settings, jax.tree.map(to_zigzag_order, batch)
    more = {"dtype": dtype, "chunks": chunks}
    logp_BT, entropy_BT = token_log_probabilities(architecture, params, batch, entropy=True, key=key, **more)
    reference_BT = None
    if settings.kl_weight and architecture.adapter and settings.kind != HOLDS_IN_REWARD:
        base = Architecture(architecture.config)
        frozen = jax.lax.stop_gradient(architecture.frozen(params))
        reference_BT, _ = token_log_probabilities(base, frozen, batch, **more)
    with jax.named_scope("loss"):
        sums = policy_loss(
            METHODS[settings.kind],
            logp_BT,
            batch.advantages,
            batch.answers,
            batch.sequences,
            clip=clip_of(settings),
            budget=settings.tokens,
            old_BT=None if batch.first else batch.old,
            reference_BT=reference_BT,
            kl_weight=settings.kl_weight if reference_BT is not None else 0.0,
            entropy_BT=jax.lax.stop_gradient(entropy_BT),
        )
    loss, weight = sums.pop("loss")
    if batch.first:
        # In the mean a sampled token is as surprising as the entropy says, if it was sampled by this very model.
        trained_BT = (batch.answers > 0).astype(jnp.float32)
        sums["surprise"] = weighted_sum(jax.lax.stop_gradient(-logp_BT - entropy_BT), trained_BT)
    nothing = jnp.zeros_like(loss)
    return loss, Sums(loss, nothing, weight, None, told=sums)


def answer_count(batch: AnswerBatch):
    """What the loss of a whole batch is divided by: the number of its answers, or of their tokens."""
    if METHODS[batch.settings.kind].average == "tokens":
        return jnp.sum(batch.answers > 0)
    return jnp.sum(jnp.max(batch.answers, axis=1))
