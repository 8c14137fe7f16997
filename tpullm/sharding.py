"""Where every array lives: mesh axes, rules from logical dimensions to axes, and the gather of a parameter.

The mesh is Explicit: the sharding is part of an array's type, so a layout mistake is an error while tracing, on a
laptop. On one device the mesh is 1x1x1x1x1 and the same code runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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


def over(spec: PartitionSpec, dimensions: range | tuple[int, ...]) -> tuple[str, ...]:
    """The mesh axes that split these dimensions of an array."""
    parts = [spec[dimension] for dimension in dimensions]
    return tuple(name for part in parts for name in ((part,) if isinstance(part, str) else part or ()))


def named(mesh: Mesh, *dimensions: str | None, rules: Rules = RULES) -> NamedSharding:
    """The sharding of an array with these logical dimensions on `mesh`."""
    return NamedSharding(mesh, rules.spec(*dimensions))


def gather(parameter: jax.Array, *dimensions: str | None, dtype: jnp.dtype, rules: Rules = RULES) -> jax.Array:
    """A parameter as its use needs it: cast to `dtype`, then whole along `embed` (FSDP's all-gather, in few bytes)."""
    used = [None if dimension == "embed" else dimension for dimension in dimensions]
    return jax.reshard(parameter.astype(dtype), rules.spec(*used))


def axis_size(axis: str | None) -> int:
    """How many devices of the mesh in use are along `axis`."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def zigzag(length: int, devices: int) -> np.ndarray:
    """The order in which a row's tokens are dealt to the devices along `sequence`: places `[T]`.

    The row is cut into twice as many pieces as devices, and each gets one from the front and its counterpart from the
    back: then all have as many earlier tokens to look at (Brandon et al. 2023; Llama 3, section 3.3.2).
    """
    if devices == 1:
        return np.arange(length)
    pieces = np.arange(length).reshape(2 * devices, -1)
    return np.concatenate([part for n in range(devices) for part in (pieces[n], pieces[-1 - n])])


def dealt(x_BT: jax.Array, rules: Rules = RULES) -> jax.Array:
    """Rows `[B, T]` with their tokens in the order of `zigzag`."""
    devices = axis_size(rules.time)
    if devices == 1:
        return x_BT
    return x_BT.at[:, zigzag(x_BT.shape[1], devices)].get(out_sharding=rules.spec("batch", "time"))


def places(length: int, axis: str) -> jax.Array:
    """Where this device's tokens stand in a row of `length`, `[T]`; inside `jax.shard_map`."""
    devices = jax.lax.axis_size(axis)
    return jnp.asarray(zigzag(length, devices).reshape(devices, -1), jnp.int32)[jax.lax.axis_index(axis)]


def in_row_order(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """What was gathered from the devices along `axis`, back in the order of the row; inside `jax.shard_map`."""
    pieces = 2 * jax.lax.axis_size(axis)
    if pieces == 2:
        return x
    parts = jnp.split(x, pieces, axis=dimension)
    return jnp.concatenate([*parts[::2], *parts[::-2]], axis=dimension)


def summed(x: jax.Array, *dimensions: str | None, over: tuple[str, ...], rules: Rules = RULES) -> jax.Array:
    """The gradient of a parameter from what each device computed of it; inside `jax.shard_map`.

    Each device is left with its own part: a reduce-scatter along `embed`, then an all-reduce of that part alone over
    the rest of the mesh axes `over`.
    """
    if "embed" in dimensions and rules.embed in over:
        x = _scattered(x, rules.embed, dimensions.index("embed"))
        over = tuple(axis for axis in over if axis != rules.embed)
    return jax.lax.psum(x, over) if over else x


def _scattered(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """Sum over a mesh axis, each device left with its part along `dimension`.

    In two steps where the axis is the whole mesh: XLA for a TPU makes a reduce-scatter over all devices an all-reduce
    and a slice, twice the bytes, and keeps one over a part of them (libtpu 0.0.50, on v5e, v6e and v5p). The second
    step has a `rows`-th of the data.
    """
    size = jax.lax.axis_size(axis)
    scatter = partial(jax.lax.psum_scatter, axis_name=axis, scatter_dimension=dimension, tiled=True)
    rows = max(divisor for divisor in range(1, math.isqrt(size) + 1) if size % divisor == 0)
    if rows == 1 or size < jax.sharding.get_abstract_mesh().size:
        return scatter(x)
    columns = size // rows
    devices = [[row * columns + column for column in range(columns)] for row in range(rows)]
    x = scatter(x, axis_index_groups=[list(column) for column in zip(*devices, strict=True)])
    return scatter(x, axis_index_groups=devices)


def one(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The logical axes of one parameter of those that are stacked by layer and by expert."""
    stacked = next((n for n, axis in enumerate(axes) if axis not in ("layers", "experts")), len(axes))
    return axes[stacked:]


def put(mesh: Mesh, batch: Any) -> Any:
    """A batch `[B, T]` of numpy arrays as arrays on the mesh, rows split by the rule for `batch`."""
    sharding = named(mesh, "batch", "time")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
