"""Trainings with and without a bad step, for tests. Run by `tests/eight_devices.py`: a bad row on each device in turn.

It then prints, as JSON, which steps were skipped, and whether the final bits are those of the training whose
bad updates were left out by hand.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.small import ARCHITECTURE, batch
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import OptimizerConfig, SkipConfig, TrainConfig
from tpullm.training import step as step_module
from tpullm.training.losses import Sums
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state, with_params

STEPS, BAD = 12, 8  # the eighth of the steps, counted from 0, is bad
SKIP = SkipConfig(window=8)


@functools.lru_cache(2)
def made(architecture, optimizer_config, batch_size, accumulation, on, batch_loss):
    """The step (of that `batch_loss`), a fresh state and where it lies, for trainings that differ in data alone."""
    config = TrainConfig(batch_size=batch_size, accumulation=accumulation, optimizer=optimizer_config)
    optimizer = make_optimizer(config.optimizer, STEPS, architecture.axes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(architecture, optimizer, on))
    random = np.random.default_rng(0)  # quicker than to compile the initialization of the architecture
    params = jax.tree.map(lambda leaf: np.float32(random.normal(0, 0.1, leaf.shape)), architecture.shapes)
    state = jax.jit(lambda params: with_params(params, optimizer), out_shardings=shardings)(params)
    step = step_module.make_step(architecture, optimizer, config, np.dtype("float32"), seed=0)
    return step, jax.tree.map(np.asarray, state), shardings


def toy_loss(architecture, params, part, **options):
    """In place of `batch_loss` where the model is not the point: quick to compile, and all layers have gradients."""
    of_tokens = jnp.sum(params["embedding"].at[part.inputs].get(out_sharding=jax.P(None, None, None)) ** 2, axis=-1)
    of_others = sum(jnp.mean((leaf - 0.1) ** 2) for leaf in jax.tree.leaves(params["layers"]))
    loss = jnp.sum(part.weights * (of_tokens + of_others))
    return loss, Sums(loss, loss, jnp.sum(part.weights), jnp.zeros(()))


def trained(architecture, config, batches, on, by_hand=()):
    """The states and metrics after each step; of the steps `by_hand` nothing but the step's number is kept."""
    with jax.set_mesh(on):
        of_config = config.optimizer, config.batch_size, config.accumulation
        step, fresh, shardings = made(architecture, *of_config, on, step_module.batch_loss)
        state, found = jax.device_put(fresh, shardings), []
        for number, rows in enumerate(batches):
            before = jax.tree.map(np.asarray, state)
            state, metrics = step(state, put_rows(on, rows))
            if number in by_hand:
                state = jax.device_put(before | {"step": before["step"] + 1}, shardings)
            found.append((jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, metrics)))
    return found


def numbers(state):
    """All that decides a later bit: the state without the count of skipped steps."""
    return state | {"optimizer": state["optimizer"]._replace(skipped=0)}


def same_bits(one, other):
    """Whether two trees of arrays are equal bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def main() -> None:
    found = {}
    config = TrainConfig(batch_size=8, optimizer=OptimizerConfig(skip=SKIP, warmup_steps=2))
    for bad in (float("nan"), float("inf")):
        batches = [batch(rows=8, seed=seed) for seed in range(9)]
        for device, one in enumerate(batches[:-1]):
            one.weights[device, 3] = bad  # of the row of that device
        on = make_mesh({"fsdp": 8})
        states = trained(ARCHITECTURE, config, batches, on)
        left_out = trained(ARCHITECTURE, config, batches, on, by_hand=range(8))
        skipped = [int(metrics["skipped"]) for _, metrics in states]
        found[str(bad)] = [skipped, same_bits(numbers(states[-1][0]), numbers(left_out[-1][0]))]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
