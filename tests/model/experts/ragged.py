"""`jax.lax.ragged_all_to_all` by other collectives, since XLA for a CPU does not compile it."""

import jax
import jax.numpy as jnp
import numpy as np


def ragged_all_to_all(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What JAX documents of that operation."""
    own, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    operands = jax.lax.all_gather(operand, axis_name)
    # From each device the chunks for this one.
    mine = lambda x: jax.lax.all_gather(x, axis_name).reshape(devices, devices, -1)[:, own]  # noqa: E731
    starts, sizes, places = (mine(x) for x in (input_offsets, send_sizes, output_offsets))
    rows = jnp.arange(output.shape[0])
    for sender, piece in np.ndindex(devices, starts.shape[1]):
        start, size, place = (x[sender, piece] for x in (starts, sizes, places))
        here = (rows >= place) & (rows < place + size)
        from_row = jnp.clip(rows - place + start, 0, operand.shape[0] - 1)
        output = jnp.where(here[:, None], operands[sender][from_row], output)
    return jnp.where(jnp.all(recv_sizes == sizes.reshape(-1)), output, jnp.nan)
