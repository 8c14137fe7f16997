"""What `launch` can rent by its name: Compute Engine's machine types and the Cloud TPU API's slices, with their prices.

The machine types, and the sources of the figures, are in `machines.yaml`; those with TPUs are in `chips.yaml`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tpullm.hardware.chips import CHIPS, Chip
from tpullm.system.errors import UserError
from tpullm.system.storage import read_tables

RDMA = "rdma"
PRICES = "on-demand list prices in us-central1, $ an hour, cloud.google.com/compute/all-pricing, 2025; spot costs less"


@dataclass(frozen=True)
class Fabric:
    """The network cards between the GPUs of several machines, beside the machine's own card.

    Args:
        transport: `tcpxo` (GPUDirect-TCPXO, each card in a network of its own) or `rdma` (GPUDirect RDMA over
            Converged Ethernet, all cards in one network).
        cards: of a machine.
        mtu: largest packet of the networks, bytes.
    """

    transport: str
    cards: int
    mtu: int


@dataclass(frozen=True)
class Machine:
    """One machine type; the defaults are those of machines without accelerators.

    Args:
        vcpus, memory_gib: its vCPUs and its memory.
        dollars_an_hour: list price, see `PRICES`; with TPU chips that of `CHIPS`; None is not known.
        name: `a3-highgpu-8g`.
        gpu: the kind of its GPUs, a key of `CHIPS` if that is known there; empty without GPUs.
        gpu_name: nvidia-smi's name of the GPU, which is JAX's `device_kind`.
        gpus: number of GPUs.
        provisioning: which values of `LaunchConfig.provisioning` Google accepts.
        disk: disk type of the boot disk; empty if the machine accepts Compute Engine's default.
        fabric: None if only the machine's own card leads to other machines.
        tpu: key of its TPU chips in `CHIPS`; empty without TPU chips.
        chips: number of TPU chips.
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
    fabric: Fabric | None = None
    tpu: str = ""
    chips: int = 0

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
        return self.gpus or (self.chips * CHIPS[self.tpu].devices_per_chip if self.tpu else 1)

    @property
    def extras(self) -> str:
        """The extras of `pyproject.toml` that it needs."""
        return "tpu,gcp" if self.tpu else "cuda,gcp" if self.gpus else "gcp"


(_rows,) = read_tables(Path(__file__).with_suffix(".yaml"), machines=dict[str, Machine])
MACHINES = {name: replace(machine, name=name) for name, machine in _rows.items()}  # those with TPUs are in `CHIPS`


def find(name: str) -> Machine:
    """The machine type of that name.

    Raises:
        UserError: there is none; the message names the nearest ones, or another way to launch on such TPUs.
    """
    found = dict(MACHINES)
    for generation, chip in CHIPS.items():
        of = chip.compute_engine
        if of and name.startswith(of.family) and not of.machines:
            told = f"launch {generation} on tpu-vm, as {chip.cloud_tpu.name}-N"
            raise UserError(f"machine: {name} is made by Google for GKE only; {told}")
        for type_, (chips, vcpus, memory_gib) in of.machines.items() if of else ():
            dollars = chips * chip.dollars_per_hour["on_demand"]
            found[type_] = Machine(vcpus, memory_gib, dollars, type_, disk=of.disk, tpu=generation, chips=chips)
    if name not in found:
        raise UserError(f"machine: there is no {name}; {_nearest_machines(name, list(found.values()))}")
    return found[name]


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

    From TPU7x on, Google makes slices on Compute Engine and GKE only
    (docs.cloud.google.com/compute/docs/tpus/tpu-resources-in-compute-engine).

    Raises:
        UserError: there is none; the message names the nearest ones, or another way to launch on such TPUs.
    """
    family, _, number = name.rpartition("-")
    known = CHIPS.get(family)
    if known and known.compute_engine and not known.cloud_tpu:
        (machine, *_) = known.compute_engine.machines
        told = f"launch it on compute, with --machine {machine}"
        raise UserError(f"accelerator: {name} is not made by the Cloud TPU API, but on Compute Engine and GKE; {told}")
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
