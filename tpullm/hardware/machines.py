"""What `launch` can rent by its name: Compute Engine's machine types and the Cloud TPU API's slices, with their prices.

Sources of machines with GPUs: `page` is Google Cloud's page of accelerator-optimized machines
(docs.cloud.google.com/compute/docs/accelerator-optimized-machines): GPUs, vCPUs, memory, disk types, ways to pay, as
remembered: look them up before you pay.
`toolkit` is the blueprint of the machine type in GoogleCloudPlatform/cluster-toolkit, examples/machine-learning:
network cards, MTU, disk types. `nvidia-smi` is what NVIDIA's driver calls the GPU, which is JAX's device kind too.
Nothing here was tried on a real machine.

To add a machine type, add it to its series; to add a series or a GPU, add its entry.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpullm.hardware.chips import CHIPS, Chip
from tpullm.system.errors import UserError

TCPXO, RDMA = "tcpxo", "rdma"
EVERY_WAY = ("spot", "on_demand", "reserved")


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
class Series:
    """Machine types that differ in their size only.

    Args:
        machines: GPUs, vCPUs, GiB of memory and $ an hour (`machines.PRICES`; None is not known) by machine type.
        provisioning: which values of `LaunchConfig.provisioning` Google accepts.
        disk: disk type of the boot disk; empty if the machines accept Compute Engine's default.
        fabric: None if only the machine's own card leads to other machines.
    """

    machines: Mapping[str, tuple[int, int, int, float | None]]
    provisioning: tuple[str, ...] = EVERY_WAY
    disk: str = ""
    fabric: Fabric | None = None


@dataclass(frozen=True)
class GpuMachines:
    """The machines with a kind of GPU.

    Args:
        name: nvidia-smi's name of the GPU, which is JAX's `device_kind`.
        series: of the machines that have it.
    """

    name: str
    series: tuple[Series, ...]


def _sizes(family: str, gpus: tuple[int, ...], vcpus: int, memory_gib: int, dollars: float) -> dict:
    """Machine types whose vCPUs, memory and price are multiples of one GPU's."""
    return {f"{family}-{n}g": (n, vcpus * n, memory_gib * n, round(dollars * n, 2)) for n in gpus}


_TCPXO_MTU = 8244  # toolkit: a3-highgpu-8g and a3-megagpu-8g
_RDMA = Fabric(RDMA, 8, 8896)  # page: eight ConnectX-7 of 400 Gbit/s; the MTU is toolkit's

GPU_MACHINES = {
    "l4": GpuMachines(
        "NVIDIA L4",  # nvidia-smi
        (
            Series(
                {  # page
                    "g2-standard-4": (1, 4, 16, 0.71),
                    "g2-standard-8": (1, 8, 32, 0.85),
                    "g2-standard-12": (1, 12, 48, 1.00),
                    "g2-standard-16": (1, 16, 64, 1.15),
                    "g2-standard-24": (2, 24, 96, 2.00),
                    "g2-standard-32": (1, 32, 128, 1.73),
                    "g2-standard-48": (4, 48, 192, 4.00),
                    "g2-standard-96": (8, 96, 384, 8.00),
                },
                disk="pd-balanced",  # page: no pd-standard, which is the API's default
            ),
        ),
    ),
    "a100-40gb": GpuMachines(
        "NVIDIA A100-SXM4-40GB",  # nvidia-smi
        (
            Series(
                _sizes("a2-highgpu", (1, 2, 4, 8), 12, 85, 3.673)  # page
                | {"a2-megagpu-16g": (16, 96, 1360, 55.74)}  # page
            ),
        ),
    ),
    "a100": GpuMachines(
        "NVIDIA A100-SXM4-80GB",  # nvidia-smi
        (Series(_sizes("a2-ultragpu", (1, 2, 4, 8), 12, 170, 5.069)),),  # page
    ),
    "h100": GpuMachines(
        "NVIDIA H100 80GB HBM3",  # nvidia-smi, of both series
        (
            # page: machines with fewer than eight GPUs are sold as spot or by the Dynamic Workload Scheduler only
            Series(_sizes("a3-highgpu", (1, 2, 4), 26, 234, 11.06), ("spot",), "pd-balanced"),
            Series(
                _sizes("a3-highgpu", (8,), 26, 234, 11.06),  # page
                disk="pd-balanced",  # page: pd-balanced, pd-ssd or hyperdisk; toolkit has pd-ssd
                fabric=Fabric(TCPXO, 4, _TCPXO_MTU),  # toolkit (a3high-slurm-tcpxo-blueprint): 4 cards of 200 Gbit/s
            ),
            Series(
                {"a3-megagpu-8g": (8, 208, 1872, 92.21)},  # page
                disk="pd-balanced",  # page, as a3-highgpu-8g
                fabric=Fabric(TCPXO, 8, _TCPXO_MTU),  # toolkit: 8 cards of 200 Gbit/s
            ),
        ),
    ),
    "h200": GpuMachines(
        "NVIDIA H200",  # nvidia-smi
        (
            Series(
                {"a3-ultragpu-8g": (8, 224, 2952, 84.81)},  # page
                provisioning=("spot", "reserved"),  # page: no on-demand
                disk="hyperdisk-balanced",  # page: no Persistent Disk; toolkit
                fabric=_RDMA,
            ),
        ),
    ),
    "b200": GpuMachines(
        "NVIDIA B200",  # nvidia-smi
        (
            Series(
                {"a4-highgpu-8g": (8, 224, 3968, None)},  # page; no list price on demand
                provisioning=("spot", "reserved"),  # page: no on-demand
                disk="hyperdisk-balanced",  # page: no Persistent Disk; toolkit
                fabric=_RDMA,
            ),
        ),
    ),
}


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

    Raises:
        UserError: there is none; the message names the nearest ones.
    """
    family, _, number = name.rpartition("-")
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
