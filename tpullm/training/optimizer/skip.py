"""Skip a step that would ruin a training: one that is not finite, or far beyond the steps before it.

A skipped step changes nothing: parameters, moments and counters keep their bits, by selection. Multiplying an update
by zero would not do, since 0 * NaN is NaN. What a skipped step measured never enters the window of the steps that the
next ones are held against, so one Inf can't hide what follows it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpullm.recipe.schema import SkipConfig

Tree = Any
# Of the mean: what is at most 60 % above it is no spike. Late in a training the steps are nearly equal, and 6
# deviations are little: in the quickstart a gradient norm of 0.36 after a mean of 0.26 was beyond them.
LEAST_DEVIATION = 0.1


class Guarded(NamedTuple):
    """The state of an optimizer that skips steps.

    Args:
        inner: the state of the optimizer.
        losses, norms: of the last W updates, float32 [W], as a ring.
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

    The returned updates of a skipped step are not to be applied: see `applied`.
    """

    def init(params: Tree) -> Guarded:
        rings = [jnp.zeros((config.window,), jnp.float32) for _ in range(2)]  # each an array of its own, to be donated
        return Guarded(optimizer.init(params), *rings, *(jnp.zeros((), jnp.int32) for _ in range(2)))

    def update(grads: Tree, state: Guarded, params: Tree, *, loss: jax.Array) -> tuple[Tree, Guarded]:
        norm = optax.tree.norm(grads)
        updates, inner = optimizer.update(grads, state.inner, params)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        if config.deviations:
            enough = state.updates >= config.window // 2
            for value, before in ((loss, state.losses), (norm, state.norms)):
                sound &= ~enough | (value <= _bound(before, state.updates, config.deviations))
        place = state.updates % config.window
        losses, norms = state.losses.at[place].set(loss), state.norms.at[place].set(norm)
        after = Guarded(inner, losses, norms, state.updates + 1, jnp.zeros_like(state.skipped))
        before = state._replace(skipped=state.skipped + 1)
        return updates, jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, before)

    return optax.GradientTransformationExtraArgs(init, update)


def _bound(before: jax.Array, updates: jax.Array, deviations: float) -> jax.Array:
    """The largest value that counts as one of those in the ring `before` [W], the first `updates` of which are set."""
    is_set = jnp.arange(before.shape[0]) < updates
    count = jnp.sum(is_set)
    mean = jnp.sum(jnp.where(is_set, before, 0)) / count
    deviation = jnp.sqrt(jnp.sum(jnp.where(is_set, jnp.square(before - mean), 0)) / count)
    return mean + deviations * jnp.maximum(deviation, LEAST_DEVIATION * jnp.abs(mean))


def applied(new: Tree, old: Tree, state: Guarded) -> Tree:
    """The parameters after a step: `new`, or bit for bit `old` if the step was skipped."""
    return jax.tree.map(lambda new, old: jnp.where(state.skipped > 0, old, new), new, old)
