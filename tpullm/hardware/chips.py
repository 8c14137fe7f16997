"""Chips, TPUs and GPUs: what is known of each. The figures and their sources are in `chips.yaml`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tpullm.system.storage import read_tables

# As quoted publicly (cloud.google.com/tpu/pricing, cloud.google.com/products/dws/pricing); not from a bill.
PRICES_DATE = "2026-11-26"


class Cycles(NamedTuple):
    """Cycles of an attention kernel.

    Args:
        body: to multiply one block.
        turn: of each turn of the kernel's loop, whether it multiplies a block or not.
        edge: to begin and end one row of blocks.
    """

    body: int
    turn: int
    edge: int


@dataclass(frozen=True)
class SliceShapes:
    """The slices of a chip, as the TPU compiler knows them.

    Args:
        dimensions: number of dimensions of the torus that the chips form.
        wraps: a dimension of this size is a ring. In three dimensions, all are rings if all are multiples of it.
        largest: chips in the largest slice.
        small: shapes of the slices that are not whole cubes.
        options: further arguments of `get_topology_desc`.
    """

    dimensions: int
    wraps: int
    largest: int
    small: tuple[tuple[int, ...], ...]
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler is told of an NVIDIA GPU (beside the clock and the bandwidth), and how hosts have them.

    Args:
        capability: NVIDIA's compute capability.
        multiprocessors: of the GPU.
        lanes: float32 units of a multiprocessor.
        threads: of a multiprocessor at most.
        memory_bytes: as the driver reports it.
        l2_bytes: size of the cache.
        shared_bytes: memory that the threads of a multiprocessor share.
        of_host: numbers of GPUs that a host can have; the largest where there are several hosts.
        domain: hosts whose GPUs NVLink connects.
    """

    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    threads: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes: int
    of_host: tuple[int, ...] = (1, 2, 4, 8)
    domain: int = 1


@dataclass(frozen=True)
class CloudTpu:
    """What the Cloud TPU API calls the slices of a chip.

    Args:
        name: of the accelerator type, before the dash: `v5litepod` of `v5litepod-16`.
        cores: what the number in an accelerator type counts for each chip: 2 if it counts TensorCores, else 1.
        sizes: the numbers that exist.
        one_host: chips of the largest slice that is on one host.
        runtime_version: the system image that Google recommends for JAX.
    """

    name: str
    cores: int
    sizes: tuple[int, ...]
    one_host: int
    runtime_version: str


@dataclass(frozen=True)
class Gke:
    """How Google Kubernetes Engine names a TPU (AI-Hypercomputer/xpk, `system_characteristics.py`).

    Args:
        label: of its nodes, `cloud.google.com/gke-tpu-accelerator`.
        machines: prefix of its machine types, which Google Batch has not.
    """

    label: str
    machines: str


@dataclass(frozen=True)
class Chip:
    """One kind of chip, a TPU or a GPU. A field that is left out is unknown, or it has no such thing.

    The figures are those of one JAX device. That is a chip, or one of `devices_per_chip`, which share the price, the
    links and the place of their chip. Bandwidths are in bytes a second and one way. Efficiencies are shares of a peak
    or of a bandwidth. Defaults are the same for all TPUs.

    Args:
        device_kinds: JAX's names of the device (`jax.Device.device_kind`).
        peak_flops: FLOP/s in bfloat16; 0 if not published.
        devices_per_chip: JAX devices of one chip.
        dollars_per_hour: price of one chip, by kind of price.
        memory_gib: size of the HBM, as published.
        hbm_bytes: HBM that a program may use.
        hbm_bandwidth: of the HBM.
        link_bandwidth: of one link of a chip to a neighbor; of a GPU, by NVLink to all others together.
        device_link_bandwidth: between the devices of one chip.
        dcn_bandwidth: the device's share of its host's data center network.
        host_bandwidth: the device's share of the bandwidth to its host's memory.
        matmul_efficiency: of large matmuls.
        grouped_efficiency: of matmuls with one expert each, as a share of `matmul_efficiency`.
        attention_efficiency: of the attention kernel, as a share of the speed by `attention`, or without it of the
            peak.
        hbm_efficiency: of element-wise work.
        link_efficiency: of collectives.
        overlap_loss: share of an asynchronous collective's time that computation does not hide.
        dcn_efficiency: of all-reduces between slices.
        latency_seconds: of one hop of a collective; of a GPU, of a whole collective.
        clock: cycles a second.
        cores: TensorCores of a device; they share the heads of attention.
        attention: cycles of the attention kernels by block size: `forward`; the gradients in two passes, `queries` and
            `keys`, or in one, `all`. Sizes that are missing do not fit the VMEM.
        ragged_exchange: whether devices can send each other different numbers of rows in one operation.
        offloads_collectives: whether SparseCores run collectives beside matmuls, with the options in
            `model/platform.py`.
        fp8: whether our programs multiply 8-bit floats on it, at twice `peak_flops`.
        host: chips of one host along each dimension, in a slice of several hosts.
        slices: None if the chip is no TPU, or if nobody has compiled for it.
        gpu: None if the chip is no GPU.
        cloud_tpu: None if `launch tpu-vm` can't use the chip.
        gke: None if `launch gke` can't use the chip.
    """

    device_kinds: tuple[str, ...]
    peak_flops: float = 0.0
    devices_per_chip: int = 1
    dollars_per_hour: Mapping[str, float] = field(default_factory=dict)
    memory_gib: int = 0
    hbm_bytes: float = 0.0
    hbm_bandwidth: float = 0.0
    link_bandwidth: float = 0.0
    device_link_bandwidth: float = 0.0
    dcn_bandwidth: float = 0.0
    host_bandwidth: float = 0.0
    matmul_efficiency: float = 0.0
    grouped_efficiency: float = 0.72  # fitted
    attention_efficiency: float = 0.0
    hbm_efficiency: float = 0.82  # fitted
    link_efficiency: float = 0.63  # fitted
    overlap_loss: float = 0.41  # fitted
    dcn_efficiency: float = 1.0  # where no run of several slices was fitted
    latency_seconds: float = 1e-6  # guess: people report about a microsecond a hop
    clock: float = 0.0
    cores: int = 1
    attention: Mapping[int, dict[str, Cycles]] = field(default_factory=dict)
    ragged_exchange: bool = True
    offloads_collectives: bool = False
    fp8: bool = False
    host: tuple[int, int, int] = (2, 2, 1)  # Google Cloud's page of each generation
    slices: SliceShapes | None = None
    gpu: Gpu | None = None
    cloud_tpu: CloudTpu | None = None
    gke: Gke | None = None

    @property
    def chips_per_host(self) -> int:
        """Chips of one host, where there are several hosts."""
        return max(self.gpu.of_host) if self.gpu else math.prod(self.host)


# JAX takes this share of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION). The rest is left for what no program's memory
# counts: CUDA's context, NCCL's buffers, the workspaces of products and of their tuning.
SHARE = 0.75


TPUS, _gpus, REACHES = read_tables(
    Path(__file__).with_suffix(".yaml"),
    tpus=dict[str, Chip],
    gpus=dict[str, Chip],
    reaches_of_gpus=dict[str, float],
)
GPUS = {name: replace(chip, hbm_bytes=SHARE * chip.gpu.memory_bytes) for name, chip in _gpus.items()}
CHIPS = TPUS | GPUS


def of_kind(device_kind: str) -> Chip:
    """The chip with this JAX device kind; an entry without figures if none is known."""
    found = (chip for chip in CHIPS.values() if device_kind in chip.device_kinds)
    return next(found, Chip((device_kind,)))
