"""All known chips, TPUs and GPUs: an entry for each, with the source of each figure. To add a chip, add its entry.

Sources of TPUs: `page` is Google Cloud's page of the generation (docs.cloud.google.com/tpu/docs/v5e, v6e, v5p).
`compiler` is the behavior of libtpu 0.0.50 when it compiles for the chip on another machine. `benchmarks/kernels.py`
counted the cycles of attention, for the splash kernels with segments and heads of 128 (libtpu 0.0.50). A clock is
inferred from the matmuls that the compiler expects to run at the peak.

Sources of GPUs: `sheet` is NVIDIA's data sheet (dense products, one direction of NVLink). `spec` is what XLA's plugin
for CUDA 13 has about the GPU to compile for it. `machine` is Google Cloud's page of machines with GPUs
(docs.cloud.google.com/compute/docs/accelerator-optimized-machines). All fitted runs are on A100 and H100; their
figures are taken for the other GPUs too.

`guess` was measured by nobody here. `fitted` figures are those with which `benchmarks/fit.py` comes nearest to the
published runs marked `fit` in `benchmarks/published.yaml`; docs/en/planning.md has the errors on the other runs.

Prices change: look them up before you decide, and override them with --price v5e=0.9. `on_demand` prices are Google
Cloud's list prices in US regions; of a GPU, that of a whole machine divided by its GPUs. `spot` prices of TPUs are half
of those: the price of flex-start TPUs (v6e 1.35). The prices of Spot VMs change by day and region and are often lower;
Google can take Spot VMs back at any time. A GPU without a quoted price has none: give it with --price b200=6.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PRICES_DATE = "2026-11-26"
# As quoted publicly; not from a bill.
PRICES_SOURCE = "https://cloud.google.com/tpu/pricing and https://cloud.google.com/products/dws/pricing"


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


KERNELS = ("forward", "queries", "keys", "all")


def kernels(*cycles: tuple[int, int, int]) -> dict[str, Cycles]:
    """The cycles of each of `KERNELS` for one block size.

    `queries` and `keys` compute the gradients in two passes, `all` computes them in one.
    """
    return {name: Cycles(*values) for name, values in zip(KERNELS, cycles, strict=True)}


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
    options: tuple[tuple[str, str], ...] = ()


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
class ComputeEngine:
    """The Compute Engine machines with a chip.

    Args:
        family: prefix of the machine types.
        machines: chips, vCPUs and GiB of memory by machine type; empty if only GKE can make the machines.
        slices: shapes of the slices that several machines can form.
        image: family of boot images in the project `ubuntu-os-accelerator-images`.
        disk: the only disk type that the machines accept; empty if they accept any.
    """

    family: str
    machines: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    slices: tuple[tuple[int, ...], ...] = ()
    image: str = ""
    disk: str = ""

    @property
    def topologies(self) -> dict[int, str]:
        """The names of `slices` by their number of chips: `{8: "2x4"}`."""
        return {math.prod(shape): "x".join(map(str, shape)) for shape in self.slices}


@dataclass(frozen=True)
class Chip:
    """One kind of chip, a JAX device: a TPU or a GPU. A field that is left out is unknown, or it has no such thing.

    Bandwidths are in bytes a second and one way. Efficiencies are shares of a peak or of a bandwidth. Defaults are the
    same for all TPUs.

    Args:
        device_kinds: JAX's names of the device (`jax.Device.device_kind`).
        peak_flops: FLOP/s in bfloat16; 0 if not published.
        dollars_per_hour: price of one chip, by kind of price.
        memory_gib: size of the HBM, as published.
        hbm_bytes: HBM that a program may use.
        hbm_bandwidth: of the HBM.
        link_bandwidth: of one link to a neighbor; of a GPU, by NVLink to all others together.
        dcn_bandwidth: the chip's share of its host's data center network.
        host_bandwidth: the chip's share of the bandwidth to its host's memory.
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
        cores: TensorCores of a chip; they share the heads of attention.
        attention: cycles of the attention kernels by block size. Sizes that are missing do not fit the VMEM.
        ragged_exchange: whether devices can send each other different numbers of rows in one operation.
        offloads_collectives: whether SparseCores run collectives beside matmuls, with the options in
            `model/platform.py`.
        fp8: whether our programs multiply 8-bit floats on it, at twice `peak_flops`.
        host: chips of one host along each dimension, in a slice of several hosts.
        slices: None if the chip is no TPU, or if nobody has compiled for it.
        gpu: None if the chip is no GPU.
        cloud_tpu: None if `launch tpu-vm` can't use the chip.
        compute_engine: None if `launch compute` can't use the chip.
    """

    device_kinds: tuple[str, ...]
    peak_flops: float = 0.0
    dollars_per_hour: Mapping[str, float] = field(default_factory=dict)
    memory_gib: int = 0
    hbm_bytes: float = 0.0
    hbm_bandwidth: float = 0.0
    link_bandwidth: float = 0.0
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
    compute_engine: ComputeEngine | None = None

    @property
    def chips_per_host(self) -> int:
        """Chips of one host, where there are several hosts."""
        return max(self.gpu.of_host) if self.gpu else math.prod(self.host)


_PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CHIPS_OF_PLANES = tuple(map(math.prod, _PLANES))
_PARTS_OF_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBES = ((4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))
_CORES_OF_CUBES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # there are more shapes than names
_IMAGE = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"

TPUS = {
    "v4": Chip(
        device_kinds=("TPU v4",),
        peak_flops=275e12,  # published
        dollars_per_hour={"on_demand": 3.22, "spot": 1.61},
        cloud_tpu=CloudTpu("v4", 2, _CORES_OF_CUBES, 4, "tpu-ubuntu2204-base"),
    ),
    "v5e": Chip(
        device_kinds=("TPU v5 lite",),
        peak_flops=197e12,  # page
        dollars_per_hour={"on_demand": 1.20, "spot": 0.60},
        memory_gib=16,  # page
        hbm_bytes=15.75 * 2**30,  # compiler: in its refusals
        hbm_bandwidth=819e9,  # page
        link_bandwidth=50e9,  # page: of a chip, by its ports and both ways
        dcn_bandwidth=3.1e9,  # page: of a pod or chip
        host_bandwidth=8e9,  # guess: half of a v6e's
        matmul_efficiency=0.95,  # fitted
        attention_efficiency=0.50,  # fitted
        dcn_efficiency=0.47,  # fitted
        clock=1.5e9,
        attention={
            128: kernels((265, 101, 164), (263, 95, 56), (253, 126, 86), (350, 129, 92)),
            256: kernels((518, 112, 289), (518, 116, 74), (723, 110, 161), (822, 106, 198)),
            512: kernels((1184, 112, 533), (1493, 92, 147), (1927, 110, 258), (2431, 106, 327)),
            1024: kernels((4762, 107, 1021), (5776, 93, 243), (7456, 110, 449), (9277, 106, 583)),
        },
        # compiler: on 64 and 256 chips "not supported in limited ICI routing settings"
        ragged_exchange=False,
        # page; which dimensions wrap is MaxText's table
        slices=SliceShapes(dimensions=2, wraps=16, largest=256, small=_PLANES),
        cloud_tpu=CloudTpu("v5litepod", 1, _CHIPS_OF_PLANES, 8, "v2-alpha-tpuv5-lite"),
        compute_engine=ComputeEngine("ct5lp-"),  # Compute Engine lists the machine types, but only GKE makes them
    ),
    "v6e": Chip(
        device_kinds=("TPU v6 lite",),
        peak_flops=918e12,  # page
        dollars_per_hour={"on_demand": 2.70, "spot": 1.35},
        memory_gib=32,  # page
        hbm_bytes=31.25 * 2**30,  # compiler: in its refusals
        hbm_bandwidth=1638e9,  # page
        link_bandwidth=100e9,  # page: of a chip, by its ports and both ways
        dcn_bandwidth=6.25e9,  # page: of a pod or chip
        host_bandwidth=16e9,  # guess; a published run of Llama 3.1 8B moves 13 GB/s, and nothing waits for it
        matmul_efficiency=0.72,  # fitted
        attention_efficiency=1.0,  # fitted
        clock=1.75e9,
        attention={
            128: kernels((234, 120, 112), (204, 108, 48), (240, 143, 70), (329, 144, 76)),
            256: kernels((558, 131, 169), (460, 127, 58), (657, 131, 121), (779, 141, 126)),
            512: kernels((939, 137, 275), (1089, 107, 106), (1346, 131, 178), (1597, 125, 215)),
            1024: kernels((3799, 126, 504), (4066, 107, 163), (4769, 131, 290), (5976, 125, 360)),
            2048: kernels((15650, 126, 952), (14709, 107, 277), (17852, 131, 515), (22970, 125, 649)),
        },
        offloads_collectives=True,  # compiler
        # page; which dimensions wrap is MaxText's table
        slices=SliceShapes(dimensions=2, wraps=16, largest=256, small=_PLANES),
        cloud_tpu=CloudTpu("v6e", 1, _CHIPS_OF_PLANES, 8, "v2-alpha-tpuv6e"),
        compute_engine=ComputeEngine(
            "ct6e-",
            {"ct6e-standard-1t": (1, 44, 176), "ct6e-standard-4t": (4, 180, 720), "ct6e-standard-8t": (8, 180, 1440)},
            _PLANES[2:],
            _IMAGE,
            "hyperdisk-balanced",
        ),
    ),
    "v5p": Chip(
        device_kinds=("TPU v5", "TPU v5p"),
        peak_flops=459e12,  # page
        dollars_per_hour={"on_demand": 4.20, "spot": 2.10},
        memory_gib=95,  # page
        hbm_bytes=95.74 * 2**30,  # compiler: in its refusals
        hbm_bandwidth=2765e9,  # page
        link_bandwidth=100e9,  # page: of a chip, by its ports and both ways
        dcn_bandwidth=6.25e9,  # page: of a pod or chip
        host_bandwidth=16e9,  # guess: as a v6e's
        matmul_efficiency=0.95,  # fitted
        attention_efficiency=0.50,  # fitted
        clock=1.75e9,
        cores=2,
        attention={
            128: kernels((259, 289, 164), (257, 192, 53), (249, 236, 83), (341, 284, 87)),
            256: kernels((521, 300, 288), (520, 215, 70), (726, 221, 159), (832, 257, 195)),
            512: kernels((1183, 300, 532), (1503, 192, 146), (1893, 221, 256), (2439, 257, 324)),
            1024: kernels((4717, 300, 1019), (5733, 192, 239), (7339, 220, 447), (9360, 256, 578)),
        },
        offloads_collectives=True,  # compiler
        # page; which dimensions wrap is MaxText's table
        slices=SliceShapes(3, 4, 6144, _PARTS_OF_A_CUBE, options=(("chip_config_name", "megacore"),)),
        cloud_tpu=CloudTpu("v5p", 2, (*_CORES_OF_CUBES, 6144, 8192, 12288), 4, "v2-alpha-tpuv5"),
        compute_engine=ComputeEngine(
            "ct5p-", {"ct5p-hightpu-4t": (4, 208, 448)}, (*_PARTS_OF_A_CUBE[1:], *_CUBES), _IMAGE
        ),
    ),
    # Of this one, only the published peak is used.
    "v7": Chip(("TPU v7",), 2307e12),
}

# JAX takes this share of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION). The rest is left for what no program's memory
# counts: CUDA's context, NCCL's buffers, the workspaces of products and of their tuning.
SHARE = 0.75

REACHES = {  # of all but the A100
    "matmul_efficiency": 0.55,  # fitted
    "grouped_efficiency": 0.7,  # guess
    "attention_efficiency": 0.50,  # fitted
    "hbm_efficiency": 0.80,  # fitted
    "link_efficiency": 0.70,  # fitted
    "dcn_efficiency": 0.64,  # fitted
    "overlap_loss": 0.05,  # guess: in compiled programs nearly nothing is waited for
    "latency_seconds": 12e-6,  # guess
    "host_bandwidth": 25e9,  # guess: half of PCI Express 5 with 16 lanes
}

GPUS = {
    "a100": Chip(
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        peak_flops=312e12,  # sheet
        dollars_per_hour={"on_demand": 5.07, "spot": 2.54},  # a2-ultragpu-1g
        memory_gib=80,
        hbm_bytes=SHARE * 85100068864,
        hbm_bandwidth=2039e9,  # sheet
        link_bandwidth=300e9,  # sheet
        dcn_bandwidth=25e9,  # sheet of DGX A100: a card of 200 Gb/s for each GPU; an a2-ultragpu-8g has 12.5 for all
        clock=1.41e9,
        gpu=Gpu((8, 0), 108, 64, 2048, 85100068864, 41943040, 167936),  # spec
        **REACHES | {"matmul_efficiency": 0.67},  # fitted
    ),
    "h100": Chip(
        device_kinds=("NVIDIA H100 80GB HBM3",),
        fp8=True,
        peak_flops=989e12,  # sheet
        dollars_per_hour={"on_demand": 11.06, "spot": 5.53},  # a3-highgpu-8g
        memory_gib=80,
        hbm_bytes=SHARE * 84942979072,
        hbm_bandwidth=3352e9,  # spec
        link_bandwidth=450e9,  # sheet
        dcn_bandwidth=25e9,  # machine: a3-megagpu-8g, 1,600 Gb/s for eight; an a3-highgpu-8g has 800, a DGX H100 3,200
        clock=1.98e9,
        gpu=Gpu((9, 0), 132, 128, 2048, 84942979072, 52428800, 233472),  # spec
        **REACHES,
    ),
    "h200": Chip(
        device_kinds=("NVIDIA H200",),
        fp8=True,
        peak_flops=989e12,  # sheet
        dollars_per_hour={"on_demand": 10.60, "spot": 5.30},  # a3-ultragpu-8g
        memory_gib=141,
        hbm_bytes=SHARE * 151397597184,
        hbm_bandwidth=4800e9,  # spec
        link_bandwidth=450e9,  # sheet
        dcn_bandwidth=50e9,  # machine: a3-ultragpu-8g, 3,200 Gb/s for eight
        clock=1.98e9,
        gpu=Gpu((9, 0), 132, 128, 2048, 151397597184, 52428800, 233472),  # spec
        **REACHES,
    ),
    "b200": Chip(
        device_kinds=("NVIDIA B200",),
        fp8=True,
        peak_flops=2250e12,  # sheet
        memory_gib=180,
        hbm_bytes=SHARE * 191514411008,
        hbm_bandwidth=7672e9,  # spec
        link_bandwidth=900e9,  # sheet
        dcn_bandwidth=50e9,  # machine: a4-highgpu-8g, 3,200 Gb/s for eight
        clock=1.965e9,
        gpu=Gpu((10, 0), 148, 128, 2048, 191514411008, 132644864, 233472),  # spec
        **REACHES,
    ),
    "gb200": Chip(
        device_kinds=("NVIDIA GB200",),
        fp8=True,
        peak_flops=2500e12,  # sheet
        memory_gib=186,
        hbm_bytes=SHARE * 197897748480,
        hbm_bandwidth=7928e9,  # spec
        link_bandwidth=900e9,  # sheet
        dcn_bandwidth=50e9,  # machine: a4x-highgpu-4g, 1,600 Gb/s for four
        clock=2.062e9,
        gpu=Gpu((10, 0), 152, 128, 2048, 197897748480, 135528448, 233472, of_host=(1, 2, 4), domain=18),  # spec
        **REACHES,
    ),
    "l4": Chip(
        device_kinds=("NVIDIA L4",),
        fp8=True,
        peak_flops=121e12,  # sheet
        dollars_per_hour={"on_demand": 0.71, "spot": 0.36},  # g2-standard-4
        memory_gib=24,
        hbm_bytes=SHARE * 23580639232,
        hbm_bandwidth=300e9,  # sheet
        link_bandwidth=16e9,  # guess: PCI Express 4 with 16 lanes, half of it; there is no NVLink
        dcn_bandwidth=1.56e9,  # machine: g2-standard-96, 100 Gb/s for eight
        clock=2.04e9,
        gpu=Gpu((8, 9), 58, 128, 1536, 23580639232, 50331648, 102400),  # sheet: XLA has no spec of it
        ragged_exchange=False,  # see `exchange.has_ragged_all_to_all`
        **REACHES,
    ),
}

CHIPS = TPUS | GPUS


def of_kind(device_kind: str) -> Chip:
    """The chip with this JAX device kind; an entry without figures if none is known."""
    found = (chip for chip in CHIPS.values() if device_kind in chip.device_kinds)
    return next(found, Chip((device_kind,)))
