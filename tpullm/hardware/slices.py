"""Slices of TPU chips by name: `v5e:16x16` is 256 chips, `2 x v5p:4x4x8` two slices of 128.

What is here describes a slice to the TPU compiler, which compiles for it on any machine.
"""

import difflib
import math
import re
from dataclasses import dataclass
from itertools import product

from tpullm.errors import UserError


@dataclass(frozen=True)
class Generation:
    """One generation of TPU.

    Args:
        kind: the name of a device, as JAX gives it.
        dimensions: of the torus that the chips form.
        host: how many chips of it a host has, along each dimension.
        wraps: dimensions of this size (or of its multiples, in three dimensions) are rings.
        largest: chips in the largest slice.
        hbm_bytes: memory of one device.
        small: the shapes of slices that are no whole cubes.
        options: what the compiler is told beside the shape.
    """

    kind: str
    dimensions: int
    host: tuple[int, int, int]
    wraps: int
    largest: int
    hbm_bytes: int
    small: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, str], ...] = ()


# Sources: Google Cloud's pages of each generation (shapes, chips, memory); which dimensions wrap is MaxText's table.
_PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_PARTS_OF_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
GENERATIONS = {
    "v5e": Generation("TPU v5 lite", 2, (2, 2, 1), 16, 256, 16 << 30, _PLANES),
    "v6e": Generation("TPU v6 lite", 2, (2, 2, 1), 16, 256, 32 << 30, _PLANES),
    "v5p": Generation("TPU v5", 3, (2, 2, 1), 4, 6144, 95 << 30, _PARTS_OF_A_CUBE, (("chip_config_name", "megacore"),)),
}


@dataclass(frozen=True)
class Topology:
    """Some slices of the same shape.

    Args:
        generation: a key of `GENERATIONS`.
        shape: chips along each dimension of a slice.
        slices: how many, connected by the data center's network.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def device_kind(self) -> str:
        """What JAX calls one device."""
        return GENERATIONS[self.generation].kind

    @property
    def hbm_bytes(self) -> int:
        """Memory of one device."""
        return GENERATIONS[self.generation].hbm_bytes

    @property
    def name(self) -> str:
        """Of one slice, as the compiler knows it."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which dimensions of a slice are rings."""
        of = GENERATIONS[self.generation]
        if of.dimensions == 2:
            return tuple(size == of.wraps for size in self.shape)
        return (all(size % of.wraps == 0 for size in self.shape),) * 3

    def options(self) -> dict:
        """The arguments of `get_topology_desc`. Without `wrap` it would be another program.

        (On v5p:8x8x8 every gather of weights became an all-reduce.)
        """
        of, wrap = GENERATIONS[self.generation], self.rings
        host = tuple(min(size, most) for size, most in zip((*self.shape, 1)[:3], of.host, strict=True))
        options = {"chips_per_host_bounds": host, "num_slices": self.slices, **dict(of.options)}
        return options | {"wrap": (*wrap, False)[:3]} if any(wrap) else options


def names(text: str) -> list[str]:
    """The names of a list with commas, in which `local` may be one."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse(text: str) -> Topology:
    """The topology of that name; `UserError` says what is wrong with it and what there is."""
    found = re.fullmatch(r"(?:(\d+) ?x )?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology: {text} is not GENERATION:SHAPE, such as v5e:16x16 or 2 x v5p:4x4x8")
    slices, generation, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    if generation not in GENERATIONS:
        nearest = difflib.get_close_matches(generation, GENERATIONS, 1, 0.1)
        told = f", nearest {nearest[0]}" if nearest else ""
        known = ", ".join(_told(name, of) for name, of in GENERATIONS.items())
        raise UserError(f"topology: {generation} is not known{told}; there are {known}")
    of = GENERATIONS[generation]
    if len(shape) != of.dimensions or 0 in shape or not slices:
        sizes = "x".join(["4"] * of.dimensions)
        raise UserError(
            f"topology: a slice of {generation} has {of.dimensions} dimensions, such as {sizes}; not {text}"
        )
    if math.prod(shape) > of.largest:
        raise UserError(f"topology: {text} has {math.prod(shape)} chips a slice; {generation} has at most {of.largest}")
    if not _exists(of, shape):
        nearest = " or ".join("x".join(map(str, other)) for other in _nearest(of, shape))
        raise UserError(f"topology: {text}: there is no such slice of {generation}; the nearest are {nearest}")
    return Topology(generation, shape, slices)


def _told(name: str, of: Generation) -> str:
    return f"{name} (up to {of.largest:,} chips of {of.hbm_bytes >> 30} GiB, {math.prod(of.host)} a host)"


def _exists(of: Generation, shape: tuple[int, ...]) -> bool:
    """Small slices are listed; larger ones of a three-dimensional torus are whole cubes, the longest side last."""
    cubes = of.dimensions == 3 and all(size % of.wraps == 0 for size in shape)
    return shape in of.small or (cubes and list(shape) == sorted(shape))


def _nearest(of: Generation, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The two slices that exist and have most nearly as many chips, each no larger than the largest."""
    cubes = product(range(of.wraps, 33, of.wraps), repeat=3) if of.dimensions == 3 else ()
    there = [*of.small, *(cube for cube in cubes if _exists(of, cube) and math.prod(cube) <= of.largest)]
    return sorted(there, key=lambda other: (abs(math.log(math.prod(other) / math.prod(shape))), max(other)))[:2]
