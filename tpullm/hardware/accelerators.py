"""TPU slices by the names that Google's API has for them: how many chips and hosts they have, and what they cost.

The number in a name counts chips (v5e, v6e) or TensorCores, two a chip (v4, v5p).
"""

import difflib
from dataclasses import dataclass

from tpullm.errors import UserError
from tpullm.hardware import prices


@dataclass(frozen=True)
class Family:
    """The slices of one generation.

    Args:
        generation: as `topology.py` and the table of prices name it.
        cores_a_chip: what the number in a name counts, for each chip.
        sizes: the numbers that there are. (v4 and v5p have more shapes than names; these are the cubes and pods.)
        on_one_host: chips of the largest slice that is one host.
        runtime_version: the system of its machines, as Google recommends for JAX.
    """

    generation: str
    cores_a_chip: int
    sizes: tuple[int, ...]
    on_one_host: int
    runtime_version: str


_PODS_2D = (1, 4, 8, 16, 32, 64, 128, 256)
FAMILIES = {
    "v4": Family("v4", 2, (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096), 4, "tpu-ubuntu2204-base"),
    "v5litepod": Family("v5e", 1, _PODS_2D, 8, "v2-alpha-tpuv5-lite"),
    "v5p": Family("v5p", 2, (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192, 12288), 4, "v2-alpha-tpuv5"),
    "v6e": Family("v6e", 1, _PODS_2D, 8, "v2-alpha-tpuv6e"),
}
CHIPS_A_HOST = 4  # of a slice that is more than one host, in all these generations


@dataclass(frozen=True)
class Slice:
    """One slice.

    Args:
        name: `v5litepod-16`.
        chips: of it.
        hosts: machines that they are in.
        family: its generation.
    """

    name: str
    chips: int
    hosts: int
    family: Family

    @property
    def dollars_an_hour(self) -> float:
        """On demand."""
        return self.chips * prices.chip_hour(self.family.generation)


def find(name: str) -> Slice:
    """The slice of that name; `UserError` names the nearest ones."""
    generation, _, number = name.rpartition("-")
    family = FAMILIES.get(generation)
    if family is None or not number.isdigit() or int(number) not in family.sizes:
        raise UserError(f"accelerator: there is no {name}; use {' or '.join(_nearest(name))}")
    chips = int(number) // family.cores_a_chip
    hosts = 1 if chips <= family.on_one_host else chips // CHIPS_A_HOST
    return Slice(name, chips, hosts, family)


def _nearest(name: str) -> list[str]:
    """Of the same generation the next sizes; else the most alike names. `v5e-16` is what people call `v5litepod-16`."""
    generation, _, number = name.replace("v5e", "v5litepod").rpartition("-")
    if generation in FAMILIES and number.isdigit():
        sizes = sorted(FAMILIES[generation].sizes, key=lambda size: abs(size - int(number)))[:2]
        return [f"{generation}-{size}" for size in sorted(sizes if int(number) not in sizes else [int(number)])]
    names = [f"{generation}-{size}" for generation, family in FAMILIES.items() for size in family.sizes]
    return difflib.get_close_matches(name, names, 2, 0.0)
