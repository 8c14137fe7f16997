"""The number of devices along each axis of a mesh, and what is wrong with the sizes asked for; without JAX."""

import math
from collections.abc import Iterator, Mapping

from tpullm.system.errors import UserError
from tpullm.system.words import nearest

AXES = ("data", "fsdp", "expert", "sequence", "tensor")


def check_sizes(shape: Mapping[str, int]) -> None:
    """Refuse an unknown axis and a size that is not a number of devices; `UserError` names the axis."""
    for axis, size in shape.items():
        if axis not in AXES:
            raise UserError(f"mesh: {axis} is not an axis; the axes are {', '.join(AXES)}; {nearest(axis, AXES, 0.0)}")
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
            raise UserError(
                f"mesh.{axis}: {size} is not a number of devices; use 1 or more, or -1 for all remaining devices"
            )
    fills = [axis for axis, size in shape.items() if size == -1]
    if len(fills) > 1:
        raise UserError(f"mesh: {' and '.join(fills)} are -1, and only one can be; give the others a size")


def axis_sizes(shape: Mapping[str, int], devices: int, hosts: int = 1) -> tuple[int, ...]:
    """The size of each of `AXES`. An axis that `shape` does not name has size 1; -1 takes the remaining devices.

    Args:
        devices: of all hosts together.
        hosts: how many hosts have them, for the message.

    Raises:
        UserError: see `check_sizes`; or the product of the sizes is not the number of devices.
    """
    check_sizes(shape)
    needed, fills = math.prod(size for size in shape.values() if size != -1), -1 in shape.values()
    if devices % needed if fills else devices != needed:
        there = f"{devices} device(s)" + (f" of {hosts} hosts together" if hosts > 1 else "")
        needs = f"a multiple of {needed}" if fills else f"{needed}"
        raise UserError(
            f"mesh: {written(shape)} needs {needs} and does not fit {there}; use {_nearest_meshes(shape, devices)}"
        )
    return tuple(devices // needed if shape.get(axis) == -1 else shape.get(axis, 1) for axis in AXES)


def written(shape: Mapping[str, int]) -> str:
    """The mesh as a recipe writes it."""
    return "{" + ", ".join(f"{axis}: {size}" for axis, size in shape.items()) + "}"


def _nearest_meshes(shape: Mapping[str, int], devices: int) -> str:
    """The two meshes that fit `devices` and are closest to `shape`, in ratios of sizes.

    If the sizes divide the number of devices, the first one has the remaining devices along `fsdp`.
    """
    fixed, fills = [axis for axis, size in shape.items() if size != -1], -1 in shape.values()
    divides = "fsdp" not in shape and not fills and devices % math.prod(shape.values()) == 0
    found = [{"fsdp": -1, **shape}] if divides else []

    def distance(sizes: tuple[int, ...]) -> float:
        return sum(abs(math.log(size / shape[axis])) for axis, size in zip(fixed, sizes, strict=True))

    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    within = _sizes_within_devices(devices, len(fixed), divisors)
    whole = [sizes for sizes in within if fills or math.prod(sizes) == devices]
    found += [{**shape, **dict(zip(fixed, sizes, strict=True))} for sizes in sorted(whole, key=distance)]
    return " or ".join(map(written, found[:2]))


def _sizes_within_devices(devices: int, axes: int, divisors: list[int]) -> Iterator[tuple[int, ...]]:
    """All sizes of this many axes, out of `divisors`, whose product divides `devices`."""
    if not axes:
        yield ()
        return
    for size in divisors:
        if devices % size == 0:
            yield from ((size, *rest) for rest in _sizes_within_devices(devices // size, axes - 1, divisors))
