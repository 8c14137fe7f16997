"""The Compute Engine machine types that `launch` can use: their hardware and prices."""

import difflib
from dataclasses import dataclass

from tpullm.errors import UserError
from tpullm.hardware.chips import CHIPS

PRICES = "on-demand list prices in us-central1, $ an hour, cloud.google.com/compute/all-pricing, 2025; spot costs less"


@dataclass(frozen=True)
class Machine:
    """One machine type.

    Args:
        name: `a3-highgpu-8g`.
        vcpus, memory_gib: its vCPUs and its memory.
        dollars: price of an hour, see `PRICES`; 0 for machines with TPU chips, whose price is in `CHIPS`.
        gpus: number of GPUs.
        tpu: key of its TPU chips in `CHIPS`; empty without TPU chips.
        chips: number of TPU chips.
    """

    name: str
    vcpus: int
    memory_gib: int
    dollars: float = 0.0
    gpus: int = 0
    tpu: str = ""
    chips: int = 0

    @property
    def dollars_an_hour(self) -> float:
        """List price on demand."""
        return self.chips * CHIPS[self.tpu].dollars_per_hour["on_demand"] if self.tpu else self.dollars

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


_WITHOUT_TPU = [
    # GPUs: A100 of 40 GB and of 80 GB, H100, H200, L4.
    *(Machine(f"a2-highgpu-{n}g", 12 * n, 85 * n, round(3.673 * n, 2), n) for n in (1, 2, 4, 8)),
    Machine("a2-megagpu-16g", 96, 1360, 55.74, 16),
    *(Machine(f"a2-ultragpu-{n}g", 12 * n, 170 * n, round(5.069 * n, 2), n) for n in (1, 2, 4, 8)),
    *(Machine(f"a3-highgpu-{n}g", 26 * n, 234 * n, round(11.06 * n, 2), n) for n in (1, 2, 4, 8)),
    Machine("a3-megagpu-8g", 208, 1872, 92.21, 8),
    Machine("a3-ultragpu-8g", 224, 2952, 84.81, 8),
    Machine("g2-standard-4", 4, 16, 0.71, 1),
    Machine("g2-standard-8", 8, 32, 0.85, 1),
    Machine("g2-standard-12", 12, 48, 1.00, 1),
    Machine("g2-standard-16", 16, 64, 1.15, 1),
    Machine("g2-standard-24", 24, 96, 2.00, 2),
    Machine("g2-standard-32", 32, 128, 1.73, 1),
    Machine("g2-standard-48", 48, 192, 4.00, 4),
    Machine("g2-standard-96", 96, 384, 8.00, 8),
    *_cpu("e2-standard", 4, 0.0335, (2, 4, 8, 16, 32)),
    *_cpu("e2-highmem", 8, 0.0452, (2, 4, 8, 16)),
    *_cpu("n2-standard", 4, 0.0486, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
    *_cpu("n2-highmem", 8, 0.0655, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
    *_cpu("c3-standard", 4, 0.0504, (4, 8, 22, 44, 88, 176)),
    *_cpu("c3-highmem", 8, 0.0680, (4, 8, 22, 44, 88, 176)),
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
    machines = {machine.name: machine for machine in (*_WITHOUT_TPU, *_with_tpu())}
    if name not in machines:
        nearest = ", ".join(difflib.get_close_matches(name, machines, 3, 0.0))
        raise UserError(f"machine: there is no {name}; the nearest are {nearest}")
    return machines[name]
