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
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tpullm.errors import UserError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")


@dataclass(frozen=True)
class Rules:
    """Which mesh axes split each logical dimension of an array.

    Rows of a batch are split over everything that holds a copy of the computation. A parameter's width is split over
    `fsdp` while it rests and gathered where it is used (ZeRO-3); heads, feed-forward and vocabulary are split over
    `tensor` in parameters and in activations alike (Megatron). Experts are spread over `expert`, each whole or split
    over `tensor` like any feed-forward layer; tokens travel to them. `routes` are a router's scores, one for each
    expert: a token needs all of them, so they are split over nothing.
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
    experts: str | None = "expert"
    routes: str | None = None
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


def put(mesh: Mesh, batch: Any) -> Any:
    """A batch `[B, T]` of numpy arrays as arrays on the mesh, rows split by the rule for `batch`."""
    sharding = named(mesh, "batch", "time")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
