"""Hosts with GPUs: `h100:8` is one host with 8, `h100:16x8` 16 such hosts. XLA can compile for them on any machine."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tpullm.errors import UserError
from tpullm.hardware import chips
from tpullm.hardware.chip import Chip
from tpullm.hardware.topology import Topology


@dataclass(frozen=True)
class GpuHosts(Topology):
    """Hosts with GPUs: `generation` has `gpu` in its entry of `chips.CHIPS`."""

    platform: ClassVar[str] = "gpu"
    compiler: ClassVar[str] = "jax-cuda13-plugin"
    extra: ClassVar[str] = "gpu-plan"

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
        return {"platform": "cuda", "target_config": target_config(self.chip), "topology": shape}


def make(generation: str, shape: tuple[int, ...], count: int, text: str) -> GpuHosts:
    """Hosts of that shape: the GPUs of one host, or hosts and the GPUs of each.

    Args:
        count: 1; several slices are of TPUs.
        text: as it was written, for messages.

    Raises:
        UserError: there are no such hosts.
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


def target_config(chip: Chip) -> str:
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
