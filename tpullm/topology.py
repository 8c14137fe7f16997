"""Slices of TPU chips by name: `v5e:16x16` is 256 chips, `2 x v5p:4x4x8` two slices of 128.

What is here describes a slice to the TPU compiler, which compiles for it on any machine.
"""

import difflib
import math
import re
from dataclasses import dataclass

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
        options: what the compiler is told beside the shape.
    """

    kind: str
    dimensions: int
    host: tuple[int, int, int]
    wraps: int
    largest: int
    hbm_bytes: int
    options: tuple[tuple[str, str], ...] = ()


# Sources: Google Cloud's pages of each generation (shapes, chips, memory); which dimensions wrap is MaxText's table.
GENERATIONS = {
    "v5e": Generation("TPU v5 lite", 2, (2, 2, 1), 16, 256, 16 << 30),
    "v6e": Generation("TPU v6 lite", 2, (2, 2, 1), 16, 256, 32 << 30),
    "v5p": Generation("TPU v5", 3, (2, 2, 1), 4, 6144, 95 << 30, (("chip_config_name", "megacore"),)),
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


def parse(text: str) -> Topology:
    """The topology of that name; `UserError` says what is wrong with it and what there is."""
    found = re.fullmatch(r"(?:(\d+) ?x )?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology: {text} is not GENERATION:SHAPE, such as v5e:16x16 or 2 x v5p:4x4x8")
    slices, generation, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    if generation not in GENERATIONS:
        nearest = difflib.get_close_matches(generation, GENERATIONS, 1, 0.1)
        told = f", nearest {nearest[0]}" if nearest else ""
        raise UserError(f"topology: {generation} is not known; there are {', '.join(GENERATIONS)}{told}")
    of = GENERATIONS[generation]
    if len(shape) != of.dimensions or 0 in shape or not slices:
        sizes = "x".join(["4"] * of.dimensions)
        raise UserError(
            f"topology: a slice of {generation} has {of.dimensions} dimensions, such as {sizes}; not {text}"
        )
    if math.prod(shape) > of.largest:
        raise UserError(f"topology: {text} has {math.prod(shape)} chips a slice; {generation} has at most {of.largest}")
    return Topology(generation, shape, slices)
