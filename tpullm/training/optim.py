"""The optimizer: AdamW with warm-up and decay of the learning rate, after a clip of the gradient's norm."""

from typing import Any

import jax
import optax

from tpullm.config import OptimizerConfig
from tpullm.sharding import one


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine, or constant with a linear decay at the end (WSD).

    Sources: Loshchilov & Hutter 2017 (cosine); Hu et al. 2024, MiniCPM (warm-up-stable-decay).
    """
    peak, last = config.peak_lr, config.peak_lr * config.final_lr_fraction
    warmup = min(config.warmup_steps, steps - 1)
    # Step 0 trains too: the warm-up reaches the peak after `warmup_steps` steps, from peak / warmup_steps.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_lr_fraction)
        return optax.join_schedules([rise, fall], [warmup])
    decay = min(max(round(config.decay_fraction * steps), 1), steps - warmup)
    stable = optax.constant_schedule(peak)
    fall = optax.linear_schedule(peak, last, decay)
    return optax.join_schedules([rise, stable, fall], [warmup, steps - decay])


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter with these logical axes is a matrix (decayed) and not a scale or a bias."""
    return "embed" in axes and len(one(axes)) > 1


def make_optimizer(config: OptimizerConfig, steps: int, axes: Any) -> optax.GradientTransformation:
    """The optimizer for parameters whose logical axes are the tree `axes`."""
    matrices = jax.tree.map(is_matrix, axes, is_leaf=lambda node: isinstance(node, tuple))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
