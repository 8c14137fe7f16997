"""Zigzag order: each device along `sequence` gets two chunks of a row, one from the front and one from the back."""

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.mesh.layout import RULES, axis_size


def zigzag_order(length: int, devices: int) -> np.ndarray:
    """The index in its row of each token in zigzag order, `[T]`; devices hold consecutive parts of it.

    The row is cut into twice as many chunks as devices. Each device gets one from the front and its counterpart from
    the back, so that all attend to equally many tokens (Brandon et al. 2023; Llama 3, section 3.3.2).
    """
    if devices == 1:
        return np.arange(length)
    chunks = np.arange(length).reshape(2 * devices, -1)
    return np.concatenate([chunk for n in range(devices) for chunk in (chunks[n], chunks[-1 - n])])


def to_zigzag_order(x_BT: jax.Array) -> jax.Array:
    """Rows `[B, T]` with their tokens in zigzag order."""
    devices = axis_size(RULES.time)
    if devices == 1:
        return x_BT
    return x_BT.at[:, zigzag_order(x_BT.shape[1], devices)].get(out_sharding=RULES.spec("batch", "time"))


def own_indices(length: int, axis: str) -> jax.Array:
    """The indices of this device's tokens in a row of `length`, `[T]`; inside `jax.shard_map`."""
    devices = jax.lax.axis_size(axis)
    return jnp.asarray(zigzag_order(length, devices).reshape(devices, -1), jnp.int32)[jax.lax.axis_index(axis)]


def all_gather_row(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """All-gather along `axis`, with the tokens back in the order of the row; inside `jax.shard_map`."""
    x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
    count = 2 * jax.lax.axis_size(axis)
    if count == 2:
        return x
    chunks = jnp.split(x, count, axis=dimension)
    return jnp.concatenate([*chunks[::2], *chunks[::-2]], axis=dimension)
