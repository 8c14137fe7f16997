"""Zeros of the cache take memory when they are written, and are zeros wherever their memory was before."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.model import cpu_memory

STATUS = Path("/proc/self/statm")
MEGABYTE = 1 << 20


@partial(jax.jit, static_argnames=("shape", "dtype"))
def made(*, shape, dtype):
    return cpu_memory.zeros(shape, dtype)


def resident() -> int:
    """Megabytes of this process in memory."""
    return int(STATUS.read_text().split()[1]) * 4096 // MEGABYTE


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3,), "float32"), ((7, 2, 911), "bfloat16"), ((5, 4097), "bfloat16"), ((1 << 20,), "float32")]
)
def test_memory_that_held_others_is_zeros(shape, dtype):
    with jax.set_mesh(mesh()):
        for _ in range(4):
            full = [jnp.full(shape, 7, dtype) for _ in range(8)]
            jax.block_until_ready(full)
            del full
            found = [made(shape=shape, dtype=dtype) for _ in range(8)]
            assert all(array.shape == shape and array.dtype == dtype for array in found)
            assert not any(np.asarray(array.astype(jnp.float32)).any() for array in found)


@pytest.mark.skipif(not STATUS.exists(), reason="memory is given back on Linux")
def test_only_what_is_written_takes_memory():
    """A row of each array is written in place. 64 MB are more than the rest of this process may change meanwhile."""
    shape = (16, MEGABYTE)
    write = jax.jit(lambda array, row: array.at[row].set(1), donate_argnums=0)
    with jax.set_mesh(mesh()):
        made(shape=shape, dtype="float32"), write(made(shape=shape, dtype="float32"), 0)  # compiled, and freed
        before = resident()
        arrays = [made(shape=shape, dtype="float32") for _ in range(8)]
        jax.block_until_ready(arrays)
        assert resident() - before < 64
        arrays = [write(array, 3) for array in arrays]
        jax.block_until_ready(arrays)
        assert resident() - before < 64 + 8 * 4
        for row in range(16):
            arrays = [write(array, row) for array in arrays]
        jax.block_until_ready(arrays)
        assert resident() - before > 8 * 64 - 64
