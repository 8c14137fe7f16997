"""All Compute Engine machine types with GPUs that `launch` can use, by kind of GPU, with the source of each figure.

Sources: `page` is Google Cloud's page of accelerator-optimized machines
(docs.cloud.google.com/compute/docs/accelerator-optimized-machines): GPUs, vCPUs, memory, disk types, ways to pay, as
remembered: look them up before you pay.
`toolkit` is the blueprint of the machine type in GoogleCloudPlatform/cluster-toolkit, examples/machine-learning:
network cards, MTU, disk types. `nvidia-smi` is what NVIDIA's driver calls the GPU, which is JAX's device kind too.
Nothing here was tried on a real machine.

To add a machine type, add it to its series; to add a series or a GPU, add its entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """Machine types whose vCPUs, memory and price are multiples of those of one GPU."""
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
