"""What `launch` can rent by its name: Compute Engine's machine types and the Cloud TPU API's slices, with their prices.

The machine types, and the sources of the figures, are in `machines.yaml`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tpullm.hardware.chips import CHIPS, Chip
from tpullm.system.errors import UserError
from tpullm.system.storage import read_tables

PRICES = "on-demand list prices in us-central1, $ an hour, cloud.google.com/compute/all-pricing, 2025; spot costs less"


@dataclass(frozen=True)
class Machine:
    """One machine type; the defaults are those of machines without accelerators.

    Args:
        vcpus, memory_gib: its vCPUs and its memory.
        dollars_an_hour: list price, see `PRICES`; None is not known.
        name: `a3-highgpu-8g`.
        gpu: the kind of its GPUs, a key of `CHIPS` if that is known there; empty without GPUs.
        gpu_name: nvidia-smi's name of the GPU, which is JAX's `device_kind`.
        gpus: number of GPUs.
        provisioning: which values of `LaunchConfig.provisioning` Google accepts.
        disk: disk type of the boot disk; empty if the machine accepts Compute Engine's default.
        cards: network cards between the GPUs of several machines, beside the machine's own.
        node_label: GKE's name of its GPUs (`cloud.google.com/gke-accelerator`); empty if we don't know it.
    """

    vcpus: int
    memory_gib: int
    dollars_an_hour: float | None
    name: str = ""
    gpu: str = ""
    gpu_name: str = ""
    gpus: int = 0
    provisioning: tuple[str, ...] = ("spot", "on_demand", "reserved")
    disk: str = ""
    cards: int = 0
    node_label: str = ""

    def dollars_of(self, count: int) -> float | None:
        """The price of several of them."""
        return None if self.dollars_an_hour is None else self.dollars_an_hour * count

    @property
    def reservation_bound(self) -> bool:
        """Whether it needs the provisioning model RESERVATION_BOUND in a reservation.

        So do machines that nobody gets on demand (cloud.google.com/compute/docs/instances/about-reservation-bound-vms).
        """
        return "on_demand" not in self.provisioning

    @property
    def devices(self) -> int:
        """JAX devices; a machine without accelerators has one."""
        return self.gpus or 1

    @property
    def extras(self) -> str:
        """The extras of `pyproject.toml` that it needs."""
        return "cuda,gcp" if self.gpus else "gcp"


(_rows,) = read_tables(Path(__file__).with_suffix(".yaml"), machines=dict[str, Machine])
MACHINES = {name: replace(machine, name=name) for name, machine in _rows.items()}


def find(name: str) -> Machine:
    """The machine type of that name.

    Raises:
        UserError: there is none; the message names the nearest ones, or how to launch on such TPUs.
    """
    for generation, chip in CHIPS.items():
        if chip.gke and name.startswith(chip.gke.machines):
            told = f"give its slice: launch gke --accelerator {generation}:SHAPE"
            raise UserError(f"machine: {name} has TPUs; {told}")
    if name not in MACHINES:
        raise UserError(f"machine: there is no {name}; {_nearest_machines(name, list(MACHINES.values()))}")
    return MACHINES[name]


def check_provisioning(machine: Machine, provisioning: str) -> None:
    """Refuse a way to pay that Google does not offer for the machine; `UserError` names the others."""
    if provisioning not in machine.provisioning:
        others = " or ".join(machine.provisioning)
        raise UserError(f"provisioning: Google does not offer {machine.name} {provisioning}; use {others}")


def _nearest_machines(name: str, machines: Sequence[Machine]) -> str:
    """What the user may have meant: the sizes of the same family with GPUs, those with the same GPU, or like names."""
    family = name.rpartition("-")[0]
    sizes = [each for each in machines if each.gpus and each.name.rpartition("-")[0] == family]
    if sizes:
        counts = ", ".join(f"{each.name} ({each.gpus} {'GPU' if each.gpus == 1 else 'GPUs'})" for each in sizes)
        return f"there are {counts}"
    if of_gpu := [each.name for each in machines if each.gpu == name.lower()]:
        return f"machines with {name} are {', '.join(of_gpu)}"
    return f"the nearest are {', '.join(difflib.get_close_matches(name, [each.name for each in machines], 3, 0.0))}"


@dataclass(frozen=True)
class Slice:
    """One TPU slice, by the Cloud TPU API's name for it.

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


def find_slice(name: str) -> Slice:
    """The TPU slice of that name. The number in it counts chips (v5e, v6e) or TensorCores, two a chip (v4, v5p).

    TPU7x has no such names (docs.cloud.google.com/compute/docs/tpus/tpu-resources-in-compute-engine).

    Raises:
        UserError: there is none; the message names the nearest ones, or another way to launch on such TPUs.
    """
    family, _, number = name.rpartition("-")
    known = CHIPS.get(family)
    if known and known.gke and not known.cloud_tpu:
        told = f"launch it on gke, as {family}:SHAPE"
        raise UserError(f"accelerator: {name} is not made by the Cloud TPU API, but by GKE; {told}")
    chip = _tpu_families().get(family)
    if chip is None or not number.isdigit() or int(number) not in chip.cloud_tpu.sizes:
        raise UserError(f"accelerator: there is no {name}; use {' or '.join(_nearest_slices(name))}")
    chips = int(number) // chip.cloud_tpu.cores
    hosts = 1 if chips <= chip.cloud_tpu.one_host else chips // chip.chips_per_host
    return Slice(name, chips, hosts, chip)


def _tpu_families() -> dict[str, Chip]:
    return {chip.cloud_tpu.name: chip for chip in CHIPS.values() if chip.cloud_tpu}


def _nearest_slices(name: str) -> list[str]:
    """The nearest sizes of the same family, or the most similar names if the family is unknown.

    People write `v5e-16` for `v5litepod-16`, so a generation is taken for its family.
    """
    families = _tpu_families()
    family, _, number = name.partition("-")
    family = CHIPS[family].cloud_tpu.name if family in CHIPS and CHIPS[family].cloud_tpu else family
    if family in families and number.isdigit():
        sizes = sorted(families[family].cloud_tpu.sizes, key=lambda size: abs(size - int(number)))[:2]
        return [f"{family}-{size}" for size in sorted(sizes if int(number) not in sizes else [int(number)])]
    names = [f"{family}-{size}" for family, chip in families.items() for size in chip.cloud_tpu.sizes]
    return difflib.get_close_matches(f"{family}-{number}", names, 2, 0.0)
