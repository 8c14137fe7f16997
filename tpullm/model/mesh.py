"""Where every array lives: the mesh, and the rules that map logical dimensions to mesh axes.

The mesh has always the five axes data, fsdp, expert, sequence and tensor. It is Explicit: the sharding is part of an
array's type, so a layout mistake is an error while tracing, on a laptop. On one device the mesh is 1x1x1x1x1 and the
same code runs.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tpullm.hardware.chips import of_kind
from tpullm.recipe.mesh_axes import AXES, axis_sizes
from tpullm.system.errors import UserError

EXPLICIT = (AxisType.Explicit,) * len(AXES)


@dataclass(frozen=True)
class Rules:
    """Which mesh axes split each logical dimension of an array.

    Rows of a batch are split over all axes of data parallelism. A parameter's width is sharded over `fsdp` at rest and
    all-gathered where it is used (ZeRO-3). Heads, feed-forward and vocabulary are split over `tensor`, in parameters
    and in activations (Megatron). Experts are split over `expert`, each whole or split over `tensor` like any
    feed-forward layer; tokens are sent to them. `routes` are a router's scores, one for each expert; a token needs all
    of them, so they are not split. `rank` is the width of an adapter, which is small.
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
    rank: str | None = None

    def spec(self, *dimensions: str | None) -> PartitionSpec:
        """The partition of an array with these logical dimensions. No mesh axis may split two of them."""
        spec = PartitionSpec(*(getattr(self, dimension) if dimension else None for dimension in dimensions))
        used = mesh_axes(spec, range(len(dimensions)))
        assert len(used) == len(set(used)), f"{dimensions} use a mesh axis twice: {spec}"
        return spec


RULES = Rules()


def make_mesh(shape: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """The explicit mesh over `devices` (default all) with all of `AXES`, of the sizes of `axis_sizes`.

    Raises:
        UserError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    hosts = len({device.process_index for device in devices})
    return Mesh(arrange_devices(axis_sizes(shape, len(devices), hosts), devices), AXES, axis_types=EXPLICIT)


def arrange_devices(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of these `sizes`: neighbours along the axes that communicate most.

    TPU slices differ along `data` alone, since only the data center's network connects them.

    An axis that is all of a slice goes along the lines of its torus (`collectives.py`), most of it along the first
    dimension. The devices of a chip share its links, so they are in one line there, and need each link once.

    Raises:
        UserError: the size of `data` is not a multiple of the number of slices.
    """
    slices = _slice_count(devices)
    options = {"allow_split_physical_axes": True}
    if slices == 1 and max(sizes) == len(devices) and of_kind(devices[0].device_kind).devices_per_chip > 1:
        along = sorted(devices, key=lambda one: (one.coords[0], one.core_on_chip, *one.coords[1:]))
        return np.array(along).reshape(sizes)
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, **options)
    if sizes[0] % slices:
        raise UserError(f"mesh.data: {sizes[0]} can't be shared by {slices} slices; use a multiple of {slices}")
    within, across = (sizes[0] // slices, *sizes[1:]), (slices, *[1] * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, **options)


def mesh_in_use(width: int) -> Mesh:
    """The mesh of a model that is used, over all devices: `fsdp` splits its width as often as one slice allows."""
    devices = jax.devices()
    return make_mesh({"data": -1, "fsdp": math.gcd(width, len(devices) // _slice_count(devices))}, devices)


def _slice_count(devices: Sequence[jax.Device]) -> int:
    on_tpu = devices[0].platform == "tpu"
    return len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1


def mesh_of_single_tokens(mesh: Mesh) -> Mesh:
    """The same devices for a token of each row at a time, which `sequence` can't split: it splits the rows too.

    A device has the same part of each parameter as on `mesh`.
    """
    devices = np.moveaxis(mesh.devices, AXES.index("sequence"), 1)
    sizes = dict(mesh.shape) | {"data": mesh.shape["data"] * mesh.shape["sequence"], "sequence": 1}
    return Mesh(devices.reshape(tuple(sizes.values())), AXES, axis_types=EXPLICIT)


def moved_to_mesh(tree, mesh: Mesh):
    """Arrays as arrays on `mesh`, whose devices already have these parts of them; nothing is copied."""

    def array(x: jax.Array) -> jax.Array:
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(mesh, x.sharding.spec), parts)

    return jax.tree.map(array, tree)


def planned_mesh(shape: Mapping[str, int], devices: int, device: AbstractDevice | None = None) -> AbstractMesh:
    """The mesh of devices that this machine need not have: layouts can be computed on it, arrays can't.

    Args:
        device: the kind of device, to trace a program for it.
    """
    return AbstractMesh(axis_sizes(shape, devices), AXES, axis_types=EXPLICIT, abstract_device=device)


def abstract_device() -> AbstractDevice | None:
    """The kind of device of the current mesh, which this machine need not have; None if no mesh is set."""
    return jax.sharding.get_abstract_mesh().abstract_device


def mesh_axes(spec: PartitionSpec, dimensions: range | tuple[int, ...]) -> tuple[str, ...]:
    """The mesh axes that split these dimensions of an array."""
    parts = [spec[dimension] for dimension in dimensions]
    return tuple(name for part in parts for name in ((part,) if isinstance(part, str) else part or ()))


@functools.cache
def named_sharding(mesh: Mesh, *dimensions: str | None) -> NamedSharding:
    """The sharding of an array with these logical dimensions on `mesh`."""
    return NamedSharding(mesh, RULES.spec(*dimensions))


def axis_size(axis: str | None) -> int:
    """How many devices the current mesh has along `axis`."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def unstacked_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The logical axes of one parameter, without the leading axes that stack layers and experts."""
    stacked = next((n for n, axis in enumerate(axes) if axis not in ("layers", "experts")), len(axes))
    return axes[stacked:]
