"""Where every array lives: mesh axes, rules from logical dimensions to axes, and the gather of a parameter.

The mesh is Explicit: the sharding is part of an array's type, so a layout mistake is an error while tracing, on a
laptop. On one device the mesh is 1x1x1x1x1 and the same code runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tpullm.errors import UserError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")


@dataclass(frozen=True)
class Rules:
    """Which mesh axes split each logical dimension of an array.

    Rows of a batch are split over everything that holds a copy of the computation. A parameter's width is split over
    `fsdp` while it rests and gathered where it is used (ZeRO-3); heads, feed-forward and vocabulary are split over
    `tensor` in parameters and in activations alike (Megatron). Every device has a share of each expert: they are split
    like any feed-forward layer, and not over `expert`.
    """

    batch: tuple[str, ...] | None = ("data", "fsdp", "expert")
    time: str | None = "sequence"
    width: str | None = None
    layers: str | None = None
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    head: str | None = None
    mlp: str | None = "tensor"
    experts: str | None = None
    vocabulary: str | None = "tensor"
    position: str | None = None

    def spec(self, *dimensions: str | None) -> PartitionSpec:
        """The partition of an array with these logical dimensions. No mesh axis may split two of them."""
        axes = [getattr(self, dimension) if dimension else None for dimension in dimensions]
        used = [name for axis in axes for name in ((axis,) if isinstance(axis, str) else axis or ())]
        assert len(used) == len(set(used)), f"{dimensions} use a mesh axis twice: {axes}"
        return PartitionSpec(*axes)


RULES = Rules()


def make_mesh(shape: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """The explicit mesh over `devices` (default all), with all of `AXES`; an axis not named has size 1, -1 fills.

    Raises:
        UserError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    sizes = axis_sizes(shape, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)


def planned_mesh(shape: Mapping[str, int], devices: int) -> AbstractMesh:
    """The mesh of that many devices that are not here: layouts can be computed on it, arrays can't."""
    return AbstractMesh(axis_sizes(shape, devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def axis_sizes(shape: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The size of each of `AXES`; `UserError` as for `make_mesh`."""
    for axis in shape:
        if axis not in AXES:
            raise UserError(f"mesh: {axis} is not an axis; the axes are {', '.join(AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    fills = [axis for axis, size in sizes.items() if size == -1]
    known = abs(math.prod(sizes.values()))
    if len(fills) == 1 and known and devices % known == 0:
        sizes[fills[0]] = devices // known
    elif fills or known != devices or min(sizes.values()) < 1:
        raise UserError(
            f"mesh: {dict(shape)} does not fit {devices} device(s); use sizes whose product is that, or one -1"
        )
    return tuple(sizes.values())


def named(mesh: Mesh, *dimensions: str | None, rules: Rules = RULES) -> NamedSharding:
    """The sharding of an array with these logical dimensions on `mesh`."""
    return NamedSharding(mesh, rules.spec(*dimensions))


def gather(parameter: jax.Array, *dimensions: str | None, dtype: jnp.dtype, rules: Rules = RULES) -> jax.Array:
    """A parameter as its use needs it: cast to `dtype`, then whole along `embed` (FSDP's all-gather, in few bytes)."""
    used = [None if dimension == "embed" else dimension for dimension in dimensions]
    return jax.reshard(parameter.astype(dtype), rules.spec(*used))


def one(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The logical axes of one parameter of those that are stacked by layer and by expert."""
    stacked = next((n for n, axis in enumerate(axes) if axis not in ("layers", "experts")), len(axes))
    return axes[stacked:]


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that this host's devices hold a part of, int64, ascending.

    They follow from the mesh, not from the host's index: hosts that share a row's times need the same rows.

    Raises:
        UserError: the devices can't share the rows.
    """
    sharding, shape = named(mesh, "batch", "time"), (batch_size, mesh.shape["sequence"])
    if batch_size % _row_parts(mesh):
        raise UserError(f"batch_size: {batch_size} rows can't be shared by {_row_parts(mesh)} parts of the mesh")
    parts = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows, _ in parts]))


def _row_parts(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in RULES.batch)


def put(mesh: Mesh, batch: Any) -> Any:
    """This host's rows `[own rows, T]` of a batch, numpy arrays, as arrays `[B, T]` on the mesh, split by the rules."""
    sharding, parts = named(mesh, "batch", "time"), _row_parts(mesh)
    own_parts = own_rows(mesh, parts)

    def place(x: np.ndarray) -> jax.Array:
        size = len(x) // len(own_parts)  # rows of a part
        assert size * len(own_parts) == len(x), f"{len(x)} rows for {len(own_parts)} parts"
        row_of_part = {part * size: row * size for row, part in enumerate(own_parts.tolist())}

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            first = row_of_part[index[0].start or 0]
            return x[first : first + size, index[1]]

        return jax.make_array_from_callback((size * parts, *x.shape[1:]), sharding, shard)

    return jax.tree.map(place, batch)
