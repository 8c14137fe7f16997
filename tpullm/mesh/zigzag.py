"""How the tokens of a row are split over the devices along `sequence`: two pieces each, one from either end."""

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.mesh.layout import RULES, Rules, axis_size


def zigzag_order(length: int, devices: int) -> np.ndarray:
    """The order in which a row's tokens are dealt to the devices along `sequence`: places `[T]`.

    The row is cut into twice as many pieces as devices, and each gets one from the front and its counterpart from the
    back: then all have as many earlier tokens to look at (Brandon et al. 2023; Llama 3, section 3.3.2).
    """
    if devices == 1:
        return np.arange(length)
    pieces = np.arange(length).reshape(2 * devices, -1)
    return np.concatenate([part for n in range(devices) for part in (pieces[n], pieces[-1 - n])])


def to_zigzag_order(x_BT: jax.Array, rules: Rules = RULES) -> jax.Array:
    """Rows `[B, T]` with their tokens in the order of `zigzag`."""
    devices = axis_size(rules.time)
    if devices == 1:
        return x_BT
    return x_BT.at[:, zigzag_order(x_BT.shape[1], devices)].get(out_sharding=rules.spec("batch", "time"))


def places(length: int, axis: str) -> jax.Array:
    """Where this device's tokens stand in a row of `length`, `[T]`; inside `jax.shard_map`."""
    devices = jax.lax.axis_size(axis)
    return jnp.asarray(zigzag_order(length, devices).reshape(devices, -1), jnp.int32)[jax.lax.axis_index(axis)]


def all_gather_row(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """The parts of all devices along `axis`, in the order of the row; inside `jax.shard_map`."""
    x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
    pieces = 2 * jax.lax.axis_size(axis)
    if pieces == 2:
        return x
    parts = jnp.split(x, pieces, axis=dimension)
    return jnp.concatenate([*parts[::2], *parts[::-2]], axis=dimension)
