"""The optimizer: skip bad steps, clip the gradient's norm, AdamW, Adafactor or Muon, weight decay, learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpullm.recipe.schema import AdapterConfig, OptimizerConfig
from tpullm.training.optimizer.adafactor import scale_by_factored_moments
from tpullm.training.optimizer.matrices import is_hidden, is_matrix, is_second_of_adapter
from tpullm.training.optimizer.moments import store_in_bfloat16
from tpullm.training.optimizer.muon import scale_by_muon
from tpullm.training.optimizer.skip import skip_bad_steps

Tree = Any


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine, or constant with a linear decay at the end (WSD).

    Sources: Loshchilov & Hutter 2017 (cosine); Hu et al. 2024, MiniCPM (warm-up-stable-decay).
    """
    peak, last = config.peak_lr, config.peak_lr * config.final_lr_fraction
    warmup = min(config.warmup_steps, steps - 1)
    # The rate of step 0 is peak / warmup_steps, not 0: that step trains too.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_lr_fraction)
        return optax.join_schedules([rise, fall], [warmup])
    begin = decay_begin(config, steps)
    stable = optax.constant_schedule(peak)
    fall = optax.linear_schedule(peak, last, steps - begin)
    return optax.join_schedules([rise, stable, fall], [warmup, begin])


def decay_begin(config: OptimizerConfig, steps: int) -> int:
    """The step at which the decay of `wsd` begins: up to there the rates are those of any longer training."""
    warmup = min(config.warmup_steps, steps - 1)
    return steps - min(max(round(config.decay_fraction * steps), 1), steps - warmup)


def learning_rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """The learning rate of every step, `[steps]`, for the log.

    All at once: for one line it would be 11 programs, and each would wait for the step that is in flight.
    """
    return np.asarray(jax.jit(learning_rate(config, steps))(np.arange(steps)))


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    axes: Tree,
    dtype: jnp.dtype = jnp.float32,
    adapter: AdapterConfig | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer for parameters whose logical axes are the tree `axes`.

    Args:
        dtype: type of the matmuls of the training, and of Muon.
        adapter: of which the parameters are, if they are of one.
    """
    ratio = adapter.b_learning_rate if adapter else 1.0
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scaling(config, axes, dtype),
        optax.add_decayed_weights(config.weight_decay, mask=_each(is_matrix, axes)),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
        *([optax.masked(optax.scale(ratio), _each(is_second_of_adapter, axes))] if ratio != 1 else []),
    )
    return skip_bad_steps(chain, config.skip)


def _scaling(config: OptimizerConfig, axes: Tree, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Gradients to updates of a root mean square near 1, which the learning rate scales."""
    if config.kind == "adafactor":
        return scale_by_factored_moments(axes)
    scaling = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if config.kind == "muon":
        hidden = _each(is_hidden, axes)
        hidden_axes = _each(lambda names: names if is_hidden(names) else optax.MaskedNode(), axes)
        muon = scale_by_muon(config.momentum, hidden_axes, dtype)
        others = jax.tree.map(lambda chosen: not chosen, hidden)
        scaling = optax.chain(optax.masked(muon, hidden), optax.masked(scaling, others))
    return store_in_bfloat16(scaling) if config.moments == "bfloat16" else scaling


def _each(function, axes: Tree) -> Tree:
    return jax.tree.map(function, axes, is_leaf=lambda node: isinstance(node, tuple))
