"""Embedding lookup: rows of a table by token id, with the table split over devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from tpullm.mesh.collectives import all_gather, reduce_gradient
from tpullm.mesh.layout import RULES, mesh_axes


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def lookup(axes: tuple[str, str], reduce_dtype: str, dtype, table: jax.Array, indices_BT: jax.Array) -> jax.Array:
    """Rows of a parameter `[V, D]`, in `dtype`: `[B, T, D]`. Each device sums its gradient in float32.

    Args:
        axes, reduce_dtype: as for `matmul`.
    """
    spec = RULES.spec("batch", "time", "width")
    split = mesh_axes(RULES.spec(axes[0]), (0,))

    def local(table_VD, indices_BT):
        rows, within = _local_rows(table_VD.shape[0], indices_BT, split)
        found_BTD = jnp.where(within[..., None], table_VD.at[rows].get(mode="clip"), 0)
        return jax.lax.psum(found_BTD, split) if split else found_BTD

    return jax.shard_map(local, out_specs=spec)(all_gather(table, *axes, dtype=dtype), indices_BT)


def _local_rows(size: int, indices, split: tuple[str, ...]):
    """The rows of `indices` among this device's `size` rows of the table, and whether they are among them."""
    first = jax.lax.axis_index(split) * size if split else 0
    return indices - first, (indices >= first) & (indices < first + size)


def _lookup_forward(axes, reduce_dtype, dtype, table, indices_BT):
    return lookup(axes, reduce_dtype, dtype, table, indices_BT), (table, indices_BT)


def _lookup_backward(axes, reduce_dtype, dtype, saved, cotangent_BTD):
    table, indices_BT = saved
    split, vocabulary = mesh_axes(jax.typeof(cotangent_BTD).sharding.spec, (0, 1)), mesh_axes(RULES.spec(axes[0]), (0,))
    mesh = jax.typeof(cotangent_BTD).sharding.mesh  # a table that nobody placed has none
    V = table.shape[0] // math.prod(mesh.shape[axis] for axis in vocabulary)

    def local_gradient(indices_BT, cotangent_BTD):
        rows, within = _local_rows(V, indices_BT, vocabulary)
        # Rows of other devices get an index beyond the last, which is dropped. A negative one would count from the end.
        flat_M = jnp.where(within, rows, V).reshape(-1)
        values_MD = cotangent_BTD.reshape(-1, table.shape[1]).astype(jnp.float32)
        dtable = jnp.zeros((V, table.shape[1]), jnp.float32).at[flat_M].add(values_MD, mode="drop")
        dtype = jnp.float32 if reduce_dtype == "float32" else cotangent_BTD.dtype
        dtable = dtable.astype(dtype) if math.prod(jax.lax.axis_size(axis) for axis in split) > 1 else dtable
        return reduce_gradient(dtable, *axes, over=split).astype(table.dtype)

    dtable = jax.shard_map(local_gradient, out_specs=RULES.spec(*axes))(indices_BT, cotangent_BTD)
    return jax.reshard(dtable, jax.typeof(table).sharding.spec), None


lookup.defvjp(_lookup_forward, _lookup_backward)
