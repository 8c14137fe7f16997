"""Where every array lives: mesh axes, rules from logical dimensions to axes, and the gather of a parameter.

The mesh is Explicit: the sharding is part of an array's type, so a layout mistake is an error while tracing, on a
laptop. On one device the mesh is 1x1x1x1x1 and the same code runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tpullm.axes import AXES, axis_sizes
from tpullm.errors import UserError
from tpullm.topology import GENERATIONS

EXPLICIT = (AxisType.Explicit,) * len(AXES)


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
    hosts = len({device.process_index for device in devices})
    return Mesh(arranged(axis_sizes(shape, len(devices), hosts), devices), AXES, axis_types=EXPLICIT)


def arranged(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices by their place in a mesh of these `sizes`: near each other along the axes that talk most.

    Slices of TPUs are told apart along `data` alone, since between them there is only the data center's network.

    Raises:
        UserError: `data` can't be shared by the slices.
    """
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    options = {"allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, **options)
    if sizes[0] % slices:
        raise UserError(f"mesh.data: {sizes[0]} can't be shared by {slices} slices; use a multiple of {slices}")
    within, across = (sizes[0] // slices, *sizes[1:]), (slices, *[1] * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, **options)


def planned_mesh(shape: Mapping[str, int], devices: int, device: AbstractDevice | None = None) -> AbstractMesh:
    """The mesh of that many devices that are not here: layouts can be computed on it, arrays can't.

    Args:
        device: what kind they are, where a program is traced for them.
    """
    return AbstractMesh(axis_sizes(shape, devices), AXES, axis_types=EXPLICIT, abstract_device=device)


def device() -> AbstractDevice | None:
    """The kind of device of the mesh that is computed for, which needn't be here; None where no mesh is set."""
    return jax.sharding.get_abstract_mesh().abstract_device


def over(spec: PartitionSpec, dimensions: range | tuple[int, ...]) -> tuple[str, ...]:
    """The mesh axes that split these dimensions of an array."""
    parts = [spec[dimension] for dimension in dimensions]
    return tuple(name for part in parts for name in ((part,) if isinstance(part, str) else part or ()))


def named(mesh: Mesh, *dimensions: str | None, rules: Rules = RULES) -> NamedSharding:
    """The sharding of an array with these logical dimensions on `mesh`."""
    return NamedSharding(mesh, rules.spec(*dimensions))


def gather(parameter: jax.Array, *dimensions: str | None, dtype: jnp.dtype, rules: Rules = RULES) -> jax.Array:
    """A parameter as its use needs it: cast to `dtype`, then whole along `embed` (FSDP's all-gather, in few bytes)."""
    used = rules.spec(*[None if dimension == "embed" else dimension for dimension in dimensions])
    if "embed" not in dimensions or axis_size(rules.embed) == 1:
        return jax.reshard(parameter.astype(dtype), used)
    local = lambda x: gathered(x.astype(dtype), *dimensions, rules=rules)  # noqa: E731
    return jax.shard_map(local, out_specs=used, check_vma=False)(parameter)


def gathered(x: jax.Array, *dimensions: str | None, rules: Rules = RULES) -> jax.Array:
    """`gather`, of a device's own part; inside `jax.shard_map`."""
    if jax.lax.axis_size(rules.embed) == 1:
        return x
    flat, shape, order = _embed_first(x, dimensions)
    gather = partial(jax.lax.all_gather, axis_name=rules.embed, axis=flat.ndim - 2, tiled=True)
    for groups in reversed(_steps(rules.embed)):
        flat = gather(flat, axis_index_groups=groups)
    return _embed_back(_laid_out(flat), shape, order)


def _steps(axis: str, planes: bool = False) -> list:
    """The groups of devices of a gather or, in this order, of a scatter along a mesh axis: [None] is one step.

    In steps where the axis is the whole mesh: one along the lines of each dimension of the torus. Over all devices, XLA
    for a TPU makes a reduce-scatter an all-reduce and a slice, twice the bytes, and of gathers of less than some 10 MB
    an all-reduce of mostly zeros; over a part of them it does not (libtpu 0.0.50, on v5e, v6e and v5p). And the small
    cores that work beside the products (`platform.COMPILER_OPTIONS`) gather along lines only.

    Args:
        planes: where the torus has three dimensions, the first step goes over two, with the links of both: scatters do
            that beside the products too (70 B on v5p 8x8x8: 157 ms are waited for, and 411 along lines).
    """
    size, mesh = jax.lax.axis_size(axis), jax.sharding.get_abstract_mesh()
    dimensions = next((of.dimensions for of in GENERATIONS.values() if of.kind == device().device_kind), 2)
    lines = _lines(size, dimensions) if size == mesh.size else [size]
    return along_lines(lines, 2 if planes and len(lines) == 3 else 1) if len(lines) > 1 else [None]


def along_lines(lines: list[int], first: int = 1) -> list[list[list[int]]]:
    """For each dimension of a grid of so many devices, in the order of their numbers, the groups along its lines.

    Args:
        first: so many dimensions are taken together, as one.
    """
    sizes = [math.prod(lines[:first]), *lines[first:]]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return [np.moveaxis(grid, n, -1).reshape(-1, length).tolist() for n, length in enumerate(sizes)]


def _lines(size: int, dimensions: int) -> list[int]:
    """A number of devices as an even product of so many factors: 1,024 in 3 dimensions is 8 x 8 x 16. None is 1."""
    if dimensions == 1:
        return [size]
    least = max(divisor for divisor in range(1, size + 1) if size % divisor == 0 and divisor**dimensions <= size)
    return [*([least] if least > 1 else []), *_lines(size // least, dimensions - 1)]


def _laid_out(x: jax.Array) -> jax.Array:
    """`x`, in memory as its dimensions say."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _embed_first(x: jax.Array, dimensions: tuple[str | None, ...]) -> tuple[jax.Array, tuple[int, ...], list[int]]:
    """A parameter as `[..., embed, the rest]`; `...` are the dimensions that stack parameters.

    The TPU compiler gathers and scatters along a dimension that is not the last in memory. Weights of heads of 64 it
    lays out with the width last; then each gather became an all-reduce of mostly zeros (1 B parameters on v5e).

    Returns:
        What is needed to go back with `_embed_back` too: the shape with `embed` first, and the order of dimensions.
    """
    stacked = len(dimensions) - len(one(dimensions))
    embed = dimensions.index("embed")
    order = [*range(stacked), embed, *[n for n in range(stacked, x.ndim) if n != embed]]
    turned = x.transpose(order)
    return _laid_out(turned.reshape(*turned.shape[: stacked + 1], -1)), turned.shape, order


def _embed_back(flat: jax.Array, shape: tuple[int, ...], order: list[int]) -> jax.Array:
    """The opposite of `_embed_first`, whatever the size of `embed` has become."""
    stacked = flat.ndim - 2
    turned = flat.reshape(*shape[:stacked], flat.shape[-2], *shape[stacked + 1 :])
    return turned.transpose([order.index(n) for n in range(len(order))])


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


def whole_row(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """The parts of all devices along `axis`, in the order of the row; inside `jax.shard_map`."""
    x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
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
        # On one device the way there and back would cost a CPU a third of its step.
        if jax.lax.axis_size(rules.embed) > 1:
            flat, shape, order = _embed_first(x, dimensions)
            x = _embed_back(_scattered(flat, rules.embed, flat.ndim - 2), shape, order)
        over = tuple(axis for axis in over if axis != rules.embed)
    return jax.lax.psum(x, over) if over else x


def _scattered(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """Sum over a mesh axis, each device left with its part along `dimension`, which is not the last."""
    parts = jnp.split(x, _cut(x.shape[-1]), axis=-1)
    for groups in _steps(axis, planes=True):
        scatter = partial(jax.lax.psum_scatter, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
        parts = [scatter(part, axis) for part in parts]
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _cut(width: int) -> list[int]:
    """Where to cut what is as wide as a vocabulary for a scatter: what is odd goes by itself.

    The TPU compiler tiles what is wide by a divisor: it makes an all-reduce of a scatter of 128,256 columns (1,002
    tiles of 128), and not of one of 128,000, 129,024 or 130,944.
    """
    even = width // 1024 * 1024
    return [even] if width > 1 << 16 and even < width else []


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
