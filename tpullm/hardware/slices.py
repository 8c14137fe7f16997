"""Slices of TPU chips by name: `v5e:16x16` is 256 chips, `2 x v5p:4x4x8` two slices of 128.

`Topology.options` describes a slice to the TPU compiler, which can compile for it on any machine.
"""

import difflib
import math
import re
from dataclasses import dataclass
from itertools import product

from tpullm.errors import UserError
from tpullm.hardware import chips
from tpullm.hardware.chip import Chip, SliceShapes


@dataclass(frozen=True)
class Topology:
    """One or several slices of the same shape.

    Args:
        generation: a key of `chips.CHIPS` whose entry has `slices`.
        shape: chips along each dimension of a slice.
        slices: number of slices; the data center network connects them.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Number of chips in all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def device_kind(self) -> str:
        """JAX's name of one device."""
        return self.chip.device_kinds[0]

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return chips.CHIPS[self.generation]

    @property
    def name(self) -> str:
        """The compiler's name of one slice."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which dimensions of a slice are rings."""
        of = self.chip.slices
        if of.dimensions == 2:
            return tuple(size == of.wraps for size in self.shape)
        return (all(size % of.wraps == 0 for size in self.shape),) * 3

    def options(self) -> dict:
        """The arguments of `get_topology_desc`.

        Without `wrap` the compiler makes another program: on v5p:8x8x8, each all-gather of weights became an
        all-reduce.
        """
        chip, wrap = self.chip, self.rings
        host = tuple(min(size, most) for size, most in zip((*self.shape, 1)[:3], chip.host, strict=True))
        options = {"chips_per_host_bounds": host, "num_slices": self.slices, **dict(chip.slices.options)}
        return options | {"wrap": (*wrap, False)[:3]} if any(wrap) else options


def names(text: str) -> list[str]:
    """The topologies in a comma-separated list; `local` may be one of them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse(text: str) -> Topology:
    """The topology of that name.

    Raises:
        UserError: there is none; the message says what is wrong with the name and which ones exist.
    """
    found = re.fullmatch(r"(?:(\d+) ?x )?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology: {text} is not GENERATION:SHAPE, such as v5e:16x16 or 2 x v5p:4x4x8")
    slices, generation, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    there = {name: chip for name, chip in chips.CHIPS.items() if chip.slices}
    if generation not in there:
        nearest = difflib.get_close_matches(generation, there, 1, 0.1)
        told = f", nearest {nearest[0]}" if nearest else ""
        known = ", ".join(_told(name, chip) for name, chip in there.items())
        raise UserError(f"topology: {generation} is not known{told}; there are {known}")
    of = there[generation].slices
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


def _told(name: str, chip: Chip) -> str:
    return f"{name} (up to {chip.slices.largest:,} chips of {chip.memory_gib} GiB, {chip.chips_per_host} a host)"


def _exists(of: SliceShapes, shape: tuple[int, ...]) -> bool:
    """Small slices are listed. Larger slices of a three-dimensional torus are whole cubes, the longest side last."""
    cubes = of.dimensions == 3 and all(size % of.wraps == 0 for size in shape)
    return shape in of.small or (cubes and list(shape) == sorted(shape))


def _nearest(of: SliceShapes, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The two existing slices whose numbers of chips are nearest."""
    cubes = product(range(of.wraps, 33, of.wraps), repeat=3) if of.dimensions == 3 else ()
    there = [*of.small, *(cube for cube in cubes if _exists(of, cube) and math.prod(cube) <= of.largest)]
    return sorted(there, key=lambda other: (abs(math.log(math.prod(other) / math.prod(shape))), max(other)))[:2]
