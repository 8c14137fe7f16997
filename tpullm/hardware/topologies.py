"""Topologies by name: `v5e:16x16`, a slice of 256 TPU chips; `2 x v5p:4x4x8`, two slices; `h100:16x8`, hosts x GPUs.

A compiler for a topology runs on any machine: it is told of the devices (`described`).
"""

import difflib
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from tpullm.hardware import chips
from tpullm.hardware.chips import Chip, SliceShapes
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Topology(ABC):
    """Devices of one kind and how they are connected. They need not be here: a compiler is told of them.

    Args:
        generation: a key of `chips.CHIPS`.
        shape: chips of a slice along each dimension; of GPUs hosts and GPUs a host, or the GPUs of one host.
        slices: number of slices; the data center network connects them.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    platform: ClassVar[str]  # JAX's name of the devices' platform
    compiler: ClassVar[str]  # the package of the compiler

    @property
    def chips(self) -> int:
        """Number of chips in all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices in all slices together."""
        return self.chips * self.chip.devices_per_chip

    @property
    def device_kind(self) -> str:
        """JAX's name of one device."""
        return self.chip.device_kinds[0]

    @property
    def chip(self) -> Chip:
        """The kind of device."""
        return chips.CHIPS[self.generation]

    @property
    def name(self) -> str:
        """The name of one slice."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """The arguments of JAX's `get_topology_desc`, by which a compiler knows these devices."""


@dataclass(frozen=True)
class Slices(Topology):
    """One or several TPU slices of the same shape: `generation` has `slices` in its entry of `chips.CHIPS`."""

    platform: ClassVar[str] = "tpu"
    compiler: ClassVar[str] = "libtpu"

    @property
    def grid(self) -> tuple[int, ...]:
        """Devices of a slice along each dimension of the torus, and then those of a chip if they are several."""
        return self.shape + (self.chip.devices_per_chip,) * (self.chip.devices_per_chip > 1)

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which dimensions of a slice are rings."""
        of = self.chip.slices
        if of.dimensions == 2:
            return tuple(size == of.wraps for size in self.shape)
        return (all(size % of.wraps == 0 for size in self.shape),) * 3

    def described(self) -> dict[str, Any]:
        """The arguments of `get_topology_desc`.

        Without `wrap` the compiler makes another program: on v5p:8x8x8, each all-gather of weights became an
        all-reduce.
        """
        chip, wrap = self.chip, self.rings
        host = tuple(min(size, most) for size, most in zip((*self.shape, 1)[:3], chip.host, strict=True))
        options = {"platform": self.platform, "topology_name": self.name, "num_slices": self.slices}
        options |= {"chips_per_host_bounds": host, **dict(chip.slices.options)}
        return options | {"wrap": (*wrap, False)[:3]} if any(wrap) else options


@dataclass(frozen=True)
class GpuHosts(Topology):
    """Hosts with GPUs: `generation` has `gpu` in its entry of `chips.CHIPS`."""

    platform: ClassVar[str] = "gpu"
    compiler: ClassVar[str] = "jax-cuda13-plugin"

    @property
    def of_host(self) -> int:
        """GPUs of one host."""
        return self.shape[-1]

    @property
    def of_domain(self) -> int:
        """GPUs that NVLink connects."""
        return min(self.chips, self.of_host * self.chip.gpu.domain)

    def described(self) -> dict[str, Any]:
        """The arguments of `get_topology_desc`: the GPU, and NVLink domains x hosts of a domain x GPUs of a host."""
        domains, hosts = self.chips // self.of_domain, self.of_domain // self.of_host
        shape = f"{domains}x{hosts}x{self.of_host}"
        return {"platform": "cuda", "target_config": _gpu_target_config(self.chip), "topology": shape}


def memory_holder(topology: Topology) -> str:
    """What has a memory of its own, in words: a chip, or a device where chips have several."""
    return "device" if topology.devices > topology.chips else "chip"


def parse(text: str) -> Topology:
    """The topology of that name.

    Raises:
        UserError: there is none; the message says what is wrong with the name and which ones exist.
    """
    found = re.fullmatch(r"(?:(\d+) ?x )?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology: {text} is not NAME:SHAPE, such as v5e:16x16, 2 x v5p:4x4x8, h100:8 or h100:16x8")
    count, generation, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    chip = chips.CHIPS.get(generation)
    if chip and chip.slices:
        return _tpu_slices(generation, shape, count, text)
    if chip and chip.gpu:
        return _gpu_hosts(generation, shape, count, text)
    there = {name: chip for name, chip in chips.CHIPS.items() if chip.slices or chip.gpu}
    nearest = difflib.get_close_matches(generation, there, 1, 0.1)
    told = f", nearest {nearest[0]}" if nearest else ""
    tpus, gpus = ([name for name, chip in there.items() if bool(chip.gpu) == is_gpu] for is_gpu in (False, True))
    known = f"TPUs {', '.join(tpus)} and GPUs {', '.join(gpus)}"
    raise UserError(f"topology: {generation} is not known{told}; there are {known}")


def _tpu_slices(generation: str, shape: tuple[int, ...], count: int, text: str) -> Slices:
    """`count` slices of that shape; `text` is their name. `UserError` if there is no such slice."""
    of = chips.CHIPS[generation].slices
    if len(shape) != of.dimensions or 0 in shape or not count:
        shapes = f"{of.dimensions} dimensions, such as {'x'.join(['4'] * of.dimensions)}"
        raise UserError(f"topology: a slice of {generation} has {shapes}; not {text}")
    if math.prod(shape) > of.largest:
        raise UserError(f"topology: {text} has {math.prod(shape)} chips a slice; {generation} has at most {of.largest}")
    if not _slice_exists(of, shape):
        # The two existing slices whose numbers of chips are nearest.
        cubes = product(range(of.wraps, 33, of.wraps), repeat=3) if of.dimensions == 3 else ()
        there = [*of.small, *(cube for cube in cubes if _slice_exists(of, cube) and math.prod(cube) <= of.largest)]
        there.sort(key=lambda other: (abs(math.log(math.prod(other) / math.prod(shape))), max(other)))
        nearest = " or ".join("x".join(map(str, other)) for other in there[:2])
        raise UserError(f"topology: {text}: there is no such slice of {generation}; the nearest are {nearest}")
    return Slices(generation, shape, count)


def _slice_exists(of: SliceShapes, shape: tuple[int, ...]) -> bool:
    """Small slices are listed. Larger slices of a three-dimensional torus are whole cubes, the longest side last."""
    cubes = of.dimensions == 3 and all(size % of.wraps == 0 for size in shape)
    return shape in of.small or (cubes and list(shape) == sorted(shape))


def _gpu_hosts(generation: str, shape: tuple[int, ...], count: int, text: str) -> GpuHosts:
    """Hosts of that shape: the GPUs of one host, or hosts and the GPUs of each; `text` is their name.

    `UserError` if there are no such hosts, or if several slices (`count`) are asked for.
    """
    gpu = chips.CHIPS[generation].gpu
    most, domain = max(gpu.of_host), gpu.domain
    hosts, own = shape if len(shape) == 2 else (1, shape[0])
    if count != 1 or len(shape) > 2 or hosts < 1:
        such = f"{generation}:{most} or {generation}:2x{most}"
        raise UserError(f"topology: {text} is not GPUS or HOSTSxGPUS, such as {such}")
    if own not in gpu.of_host or (hosts > 1 and own != most):
        sizes = ", ".join(map(str, gpu.of_host))
        several = f"; several hosts have {most} each" if hosts > 1 else ""
        raise UserError(f"topology: {text}: a host has {sizes} GPUs of {generation}, not {own}{several}")
    if hosts > domain > 1 and hosts % domain:
        raise UserError(f"topology: {text}: NVLink connects {domain} hosts of {generation}; use a multiple of {domain}")
    return GpuHosts(generation, (own,) if hosts == 1 else (hosts, own))


def _gpu_target_config(chip: Chip) -> str:
    """The GPU in XLA's words (`GpuTargetConfigProto`), as text. What all these GPUs have in common is written here.

    Without `runtime_version`, that of CUDA, XLA makes no product of 8-bit floats by CUDA's library.
    """
    gpu, (major, minor) = chip.gpu, chip.gpu.capability
    own = "ACCELERATED_FEATURES" if major >= 9 else "NONE"  # Hopper and later have instructions of one generation alone
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.hbm_bandwidth:.0f}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {chip.clock / 1e9:g}
  device_memory_size: {gpu.memory_bytes}
  shared_memory_per_block_optin: {gpu.shared_bytes - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {own} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  runtime_version: "13.2.0"
  dnn_version: "9.23.0"
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
}}
platform_name: "CUDA"
device_description_str: "{chip.device_kinds[0]}"
"""
