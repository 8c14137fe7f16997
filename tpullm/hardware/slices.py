"""Slices of TPU chips. The TPU compiler can compile for them on any machine (`Slices.described`)."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from tpullm.errors import UserError
from tpullm.hardware import chips
from tpullm.hardware.chip import SliceShapes
from tpullm.hardware.topology import Topology


@dataclass(frozen=True)
class Slices(Topology):
    """One or several TPU slices of the same shape: `generation` has `slices` in its entry of `chips.CHIPS`."""

    platform: ClassVar[str] = "tpu"
    compiler: ClassVar[str] = "libtpu"
    extra: ClassVar[str] = "tpu"

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which dimensions of a slice are rings."""
        of = self.chip.slices
        if of.dimensions == 2:
            return tuple(size == of.wraps for size in self.shape)
        return (all(size % of.wraps == 0 for size in self.shape),) * 3

    def described(self) -> dict[str, Any]:
        """The arguments of `get_topology_desc`.

        Without `wrap` the compiler makes another program: on v5p:8x8x8, each all-gather of weights became an
        all-reduce.
        """
        chip, wrap = self.chip, self.rings
        host = tuple(min(size, most) for size, most in zip((*self.shape, 1)[:3], chip.host, strict=True))
        options = {"platform": self.platform, "topology_name": self.name, "num_slices": self.slices}
        options |= {"chips_per_host_bounds": host, **dict(chip.slices.options)}
        return options | {"wrap": (*wrap, False)[:3]} if any(wrap) else options


def make(generation: str, shape: tuple[int, ...], count: int, text: str) -> Slices:
    """So many slices of that shape.

    Args:
        text: as it was written, for messages.

    Raises:
        UserError: there is no such slice; the message says which ones are nearest.
    """
    of = chips.CHIPS[generation].slices
    if len(shape) != of.dimensions or 0 in shape or not count:
        sizes = "x".join(["4"] * of.dimensions)
        raise UserError(
            f"topology: a slice of {generation} has {of.dimensions} dimensions, such as {sizes}; not {text}"
        )
    if math.prod(shape) > of.largest:
        raise UserError(f"topology: {text} has {math.prod(shape)} chips a slice; {generation} has at most {of.largest}")
    if not _exists(of, shape):
        nearest = " or ".join("x".join(map(str, other)) for other in _nearest(of, shape))
        raise UserError(f"topology: {text}: there is no such slice of {generation}; the nearest are {nearest}")
    return Slices(generation, shape, count)


def _exists(of: SliceShapes, shape: tuple[int, ...]) -> bool:
    """Small slices are listed. Larger slices of a three-dimensional torus are whole cubes, the longest side last."""
    cubes = of.dimensions == 3 and all(size % of.wraps == 0 for size in shape)
    return shape in of.small or (cubes and list(shape) == sorted(shape))


def _nearest(of: SliceShapes, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The two existing slices whose numbers of chips are nearest."""
    cubes = product(range(of.wraps, 33, of.wraps), repeat=3) if of.dimensions == 3 else ()
    there = [*of.small, *(cube for cube in cubes if _exists(of, cube) and math.prod(cube) <= of.largest)]
    return sorted(there, key=lambda other: (abs(math.log(math.prod(other) / math.prod(shape))), max(other)))[:2]
