"""The Compute Engine machine types that `launch` can use: their hardware and prices."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from tpullm.errors import UserError
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.gpu_machines import GPU_MACHINES, Series

PRICES = "on-demand list prices in us-central1, $ an hour, cloud.google.com/compute/all-pricing, 2025; spot costs less"


@dataclass(frozen=True)
class Machine:
    """One machine type.

    Args:
        name: `a3-highgpu-8g`.
        vcpus, memory_gib: its vCPUs and its memory.
        dollars: price of an hour, see `PRICES`; 0 for machines with TPU chips, whose price is in `CHIPS`; None is not
            known.
        gpu: key of its GPUs in `GPU_MACHINES`; empty without GPUs.
        gpus: number of GPUs.
        series: of a machine with GPUs.
        tpu: key of its TPU chips in `CHIPS`; empty without TPU chips.
        chips: number of TPU chips.
    """

    name: str
    vcpus: int
    memory_gib: int
    dollars: float | None = 0.0
    gpu: str = ""
    gpus: int = 0
    series: Series | None = None
    tpu: str = ""
    chips: int = 0

    @property
    def dollars_an_hour(self) -> float | None:
        """List price on demand; None is not known."""
        return self.chips * CHIPS[self.tpu].dollars_per_hour["on_demand"] if self.tpu else self.dollars

    @property
    def disk(self) -> str:
        """The disk type that it needs; empty if it accepts Compute Engine's default, or has TPU chips."""
        return self.series.disk if self.series else ""

    def dollars_of(self, count: int) -> float | None:
        """The same for several of them."""
        return None if self.dollars_an_hour is None else self.dollars_an_hour * count

    @property
    def reservation_bound(self) -> bool:
        """Whether it needs the provisioning model RESERVATION_BOUND in a reservation.

        So do machines that nobody gets on demand (cloud.google.com/compute/docs/instances/about-reservation-bound-vms).
        """
        return bool(self.series) and "on_demand" not in self.series.provisioning

    @property
    def devices(self) -> int:
        """JAX devices; a machine without accelerators has one."""
        return self.gpus or self.chips or 1

    @property
    def extras(self) -> str:
        """The extras of `pyproject.toml` that it needs."""
        return "tpu,gcp" if self.tpu else "cuda,gcp" if self.gpus else "gcp"


def _cpu(family: str, memory_gib: int, dollars: float, sizes: tuple[int, ...]) -> list[Machine]:
    """A family without accelerators; `memory_gib` and `dollars` are those of one vCPU."""
    return [Machine(f"{family}-{size}", size, memory_gib * size, round(dollars * size, 3)) for size in sizes]


_CPUS = [
    *_cpu("e2-standard", 4, 0.0335, (2, 4, 8, 16, 32)),
    *_cpu("e2-highmem", 8, 0.0452, (2, 4, 8, 16)),
    *_cpu("n2-standard", 4, 0.0486, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
    *_cpu("n2-highmem", 8, 0.0655, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
    *_cpu("c3-standard", 4, 0.0504, (4, 8, 22, 44, 88, 176)),
    *_cpu("c3-highmem", 8, 0.0680, (4, 8, 22, 44, 88, 176)),
]


def _with_gpus() -> list[Machine]:
    return [
        Machine(name, vcpus, memory_gib, dollars, key, gpus, series)
        for key, gpu in GPU_MACHINES.items()
        for series in gpu.series
        for name, (gpus, vcpus, memory_gib, dollars) in series.machines.items()
    ]


def _with_tpu() -> list[Machine]:
    return [
        Machine(name, vcpus, memory_gib, tpu=generation, chips=chips)
        for generation, chip in CHIPS.items()
        if chip.compute_engine
        for name, (chips, vcpus, memory_gib) in chip.compute_engine.machines.items()
    ]


def find(name: str) -> Machine:
    """The machine type of that name.

    Raises:
        UserError: there is none; the message names the nearest ones, or another way to launch on such TPUs.
    """
    for generation, chip in CHIPS.items():
        of = chip.compute_engine
        if of and name.startswith(of.family) and not of.machines:
            told = f"launch {generation} on tpu-vm, as {chip.cloud_tpu.name}-N"
            raise UserError(f"machine: {name} is made by Google for GKE only; {told}")
    machines = {machine.name: machine for machine in (*_CPUS, *_with_gpus(), *_with_tpu())}
    if name not in machines:
        raise UserError(f"machine: there is no {name}; {_instead(name, list(machines.values()))}")
    return machines[name]


def check_provisioning(machine: Machine, provisioning: str) -> None:
    """Refuse a way to pay that Google does not offer for the machine; `UserError` names the others."""
    if machine.series and provisioning not in machine.series.provisioning:
        others = " or ".join(machine.series.provisioning)
        raise UserError(f"provisioning: Google does not offer {machine.name} {provisioning}; use {others}")


def _instead(name: str, machines: Sequence[Machine]) -> str:
    """What the user may have meant: the sizes of the same family with GPUs, those with the same GPU, or like names."""
    family = name.rpartition("-")[0]
    sizes = [each for each in machines if each.gpus and each.name.rpartition("-")[0] == family]
    if sizes:
        counts = ", ".join(f"{each.name} ({each.gpus} {'GPU' if each.gpus == 1 else 'GPUs'})" for each in sizes)
        return f"there are {counts}"
    if of_gpu := [each.name for each in machines if each.gpu == name.lower()]:
        return f"machines with {name} are {', '.join(of_gpu)}"
    return f"the nearest are {', '.join(difflib.get_close_matches(name, [each.name for each in machines], 3, 0.0))}"
