"""The optimizer: skip bad steps, clip the gradient's norm, AdamW, Adafactor or Muon, weight decay, learning rate.

A bad step is one whose loss, gradient norm or update is not finite, or is far beyond those of the steps before it. It
changes nothing: parameters, moments and counters keep their bits, by selection in the step itself, so all devices
agree. Multiplying an update by zero would not do, since 0 * NaN is NaN. What a skipped step measured never enters the
window of the steps that the next ones are compared with, so one Inf can't hide what follows it. Where the text changes,
the window is emptied: the losses of new text are compared with each other (`open_window`).
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpullm.model.architecture import Tree, is_hidden_matrix, is_matrix, is_second_of_adapter
from tpullm.recipe.schema import AdapterConfig, OptimizerConfig, SkipConfig
from tpullm.training.optimizer.moments import scale_by_factored_moments, store_in_bfloat16
from tpullm.training.optimizer.muon import scale_by_muon

# Of the mean: what is at most 60 % above it is no spike. Late in a training the steps are nearly equal, and 6
# deviations are little: in the quickstart a gradient norm of 0.36 after a mean of 0.26 was beyond them.
LEAST_DEVIATION = 0.1


class Guarded(NamedTuple):
    """The state of an optimizer that skips steps.

    Args:
        inner: the state of the optimizer.
        losses, norms: of the last W updates, float32 [W], as a ring. Infinite where the window was emptied.
        updates: how many updates there were: the steps that were not skipped. int32.
        skipped: how many steps in a row were skipped up to now; 0 if the last one was not. int32.
    """

    inner: Tree
    losses: jax.Array
    norms: jax.Array
    updates: jax.Array
    skipped: jax.Array


def skip_bad_steps(
    optimizer: optax.GradientTransformation, config: SkipConfig
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, which skips bad steps. `update` also takes the step's `loss`.

    The returned updates of a skipped step are not to be applied: see `applied_unless_skipped`.
    """

    def init(params: Tree) -> Guarded:
        rings = [jnp.zeros((config.window,), jnp.float32) for _ in range(2)]  # each an array of its own, to be donated
        return Guarded(optimizer.init(params), *rings, *(jnp.zeros((), jnp.int32) for _ in range(2)))

    def update(grads: Tree, state: Guarded, params: Tree, *, loss: jax.Array) -> tuple[Tree, Guarded]:
        norm = optax.tree.norm(grads)
        updates, inner = optimizer.update(grads, state.inner, params)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        if config.deviations:
            for value, before in ((loss, state.losses), (norm, state.norms)):
                sound &= ~(value > outlier_bound(before, state.updates, config.deviations))
        place = state.updates % config.window
        losses, norms = state.losses.at[place].set(loss), state.norms.at[place].set(norm)
        after = Guarded(inner, losses, norms, state.updates + 1, jnp.zeros_like(state.skipped))
        before = state._replace(skipped=state.skipped + 1)
        return updates, jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, before)

    return optax.GradientTransformationExtraArgs(init, update)


def outlier_bound(before: jax.Array, updates: jax.Array, deviations: float) -> jax.Array:
    """The largest value that is not an outlier among the ring `before` [W]; its first `updates` values are set.

    Infinite if less than half of the window is there.
    """
    is_set = (jnp.arange(before.shape[0]) < updates) & jnp.isfinite(before)
    count = jnp.sum(is_set)
    mean = jnp.sum(jnp.where(is_set, before, 0)) / count
    deviation = jnp.sqrt(jnp.sum(jnp.where(is_set, jnp.square(before - mean), 0)) / count)
    bound = mean + deviations * jnp.maximum(deviation, LEAST_DEVIATION * jnp.abs(mean))
    return jnp.where(count >= before.shape[0] // 2, bound, jnp.inf)


def open_window(state: Guarded) -> Guarded:
    """The state with an empty window: until half of it is there again, only what is not finite is skipped."""
    empty = lambda ring: jax.device_put(np.full(ring.shape, np.inf, ring.dtype), ring.sharding)  # noqa: E731
    return state._replace(losses=empty(state.losses), norms=empty(state.norms))


def applied_unless_skipped(new: Tree, old: Tree, state: Guarded) -> Tree:
    """The parameters after a step: `new`, or bit for bit `old` if the step was skipped."""
    return jax.tree.map(lambda new, old: jnp.where(state.skipped > 0, old, new), new, old)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine, or constant with a linear decay at the end (WSD).

    Sources: Loshchilov & Hutter 2017 (cosine); Hu et al. 2024, MiniCPM (warm-up-stable-decay).
    """
    peak, warmup = config.peak_lr, min(config.warmup_steps, steps - 1)
    # The rate of step 0 is peak / warmup_steps, not 0: that step trains too.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_lr_fraction)
        return optax.join_schedules([rise, fall], [warmup])
    begin = decay_begin(config, steps)
    fall = optax.linear_schedule(peak, peak * config.final_lr_fraction, steps - begin)
    return optax.join_schedules([rise, optax.constant_schedule(peak), fall], [warmup, begin])


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
    config: OptimizerConfig, steps: int, axes: Tree, dtype=jnp.float32, adapter: AdapterConfig | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer for parameters whose logical axes are the tree `axes`.

    Args:
        dtype: type of the matmuls of the training, and of Muon.
        adapter: of which the parameters are, if they are of one.
    """
    ratio = adapter.b_learning_rate if adapter else 1.0
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scale_gradients(config, axes, dtype),
        optax.add_decayed_weights(config.weight_decay, mask=_map_axes(is_matrix, axes)),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
        *([optax.masked(optax.scale(ratio), _map_axes(is_second_of_adapter, axes))] if ratio != 1 else []),
    )
    return skip_bad_steps(chain, config.skip)


def _scale_gradients(config: OptimizerConfig, axes: Tree, dtype: jnp.dtype) -> optax.GradientTransformation:
    """Gradients to updates of a root mean square near 1, which the learning rate scales."""
    if config.kind == "adafactor":
        return scale_by_factored_moments(axes)
    scaling = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if config.kind == "muon":
        hidden = _map_axes(is_hidden_matrix, axes)
        hidden_axes = _map_axes(lambda names: names if is_hidden_matrix(names) else optax.MaskedNode(), axes)
        muon = optax.masked(scale_by_muon(config.momentum, hidden_axes, dtype), hidden)
        scaling = optax.chain(muon, optax.masked(scaling, jax.tree.map(operator.not_, hidden)))
    return store_in_bfloat16(scaling) if config.moments == "bfloat16" else scaling


def _map_axes(function, axes: Tree) -> Tree:
    return jax.tree.map(function, axes, is_leaf=lambda node: isinstance(node, tuple))
