"""TPU slices by the Cloud TPU API's names for them: how many chips and hosts they have, and what they cost.

The number in a name counts chips (v5e, v6e) or TensorCores, two a chip (v4, v5p).
"""

import difflib
from dataclasses import dataclass

from tpullm.hardware.chip import Chip
from tpullm.hardware.chips import CHIPS
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Slice:
    """One slice.

    Args:
        name: `v5litepod-16`.
        chips: number of chips.
        hosts: number of machines.
        chip: the kind of chip.
    """

    name: str
    chips: int
    hosts: int
    chip: Chip

    @property
    def dollars_an_hour(self) -> float:
        """List price on demand."""
        return self.chips * self.chip.dollars_per_hour["on_demand"]


def find(name: str) -> Slice:
    """The slice of that name.

    Raises:
        UserError: there is none; the message names the nearest ones.
    """
    family, _, number = name.rpartition("-")
    chip = _families().get(family)
    if chip is None or not number.isdigit() or int(number) not in chip.cloud_tpu.sizes:
        raise UserError(f"accelerator: there is no {name}; use {' or '.join(_nearest(name))}")
    chips = int(number) // chip.cloud_tpu.cores
    hosts = 1 if chips <= chip.cloud_tpu.one_host else chips // chip.chips_per_host
    return Slice(name, chips, hosts, chip)


def _families() -> dict[str, Chip]:
    return {chip.cloud_tpu.name: chip for chip in CHIPS.values() if chip.cloud_tpu}


def _nearest(name: str) -> list[str]:
    """The nearest sizes of the same family, or the most similar names if the family is unknown.

    People write `v5e-16` for `v5litepod-16`, so a generation is taken for its family.
    """
    families = _families()
    family, _, number = name.partition("-")
    family = CHIPS[family].cloud_tpu.name if family in CHIPS and CHIPS[family].cloud_tpu else family
    if family in families and number.isdigit():
        sizes = sorted(families[family].cloud_tpu.sizes, key=lambda size: abs(size - int(number)))[:2]
        return [f"{family}-{size}" for size in sorted(sizes if int(number) not in sizes else [int(number)])]
    names = [f"{family}-{size}" for family, chip in families.items() for size in chip.cloud_tpu.sizes]
    return difflib.get_close_matches(f"{family}-{number}", names, 2, 0.0)
