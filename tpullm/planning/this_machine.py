"""This machine as a topology: its devices, and their speed, measured in half a second."""

import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tpullm.hardware.chips import CHIPS, REACHES, Chip, of_kind
from tpullm.hardware.peak_flops import fastest_run, peak
from tpullm.hardware.topologies import GpuHosts, Slices, Topology
from tpullm.model.attention.kernels import query_block
from tpullm.model.platform import compute_dtype
from tpullm.planning.economics import RESTART_SECONDS, estimate_step, whole_run
from tpullm.planning.memory import device_bytes, global_state
from tpullm.planning.setting import CPU, OURS, Job, Setting, setting_of
from tpullm.recipe.schema import AdapterConfig, ModelConfig, TrainConfig
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.system.words import moment

# What a CPU reaches of its measured peak and bandwidth: fitted to the quickstart, 12 M and 50 M on two idle cores of a
# Xeon with AMX (1,660 GFLOP/s, 27.7 GB/s; benchmarks/predict.py --fit). Seven other models came within 20 % there. An
# EPYC without AMX (430 GFLOP/s) reaches more of its peak (0.93, 0.30 and 0.36), so its steps are predicted about a
# third too slow.
CPU_REACHES = {
    "matmul_efficiency": 0.58,
    "attention_efficiency": 0.27,
    "hbm_efficiency": 0.21,
    "grouped_efficiency": 0.41,  # fitted to the mixture there, which was predicted 26 % too fast without
    "latency_seconds": 1e-4,
}
# Of a GPU that `hardware/chips.yaml` does not know, which has no NVLink.
GPU_REACHES = REACHES | {"link_bandwidth": 16e9}
COPIED = 1 << 27  # bytes of the array whose sum with itself measures the memory bandwidth


@dataclass(frozen=True)
class Machine:
    """Devices that are here and of no known chip, with the interface of `Topology`.

    Args:
        chips: number of devices of all hosts.
        hbm_bytes: memory of one device.
        device_kind: JAX's name of one device.
    """

    chips: int
    hbm_bytes: int
    device_kind: str
    generation: ClassVar[str] = "local"
    slices: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """All devices in one line."""
        return (self.chips,)

    @property
    def devices(self) -> int:
        """Number of devices of all hosts: each counts as a chip."""
        return self.chips

    @property
    def platform(self) -> str:
        """JAX's name of the devices' platform."""
        return jax.default_backend()

    def __str__(self) -> str:
        return self.generation


def machine() -> Machine:
    """This machine."""
    device, count = jax.local_devices()[0], jax.device_count()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return Machine(count, limit or shared, device.device_kind)


@lru_cache(maxsize=4)
def measured_device(dtype: str) -> Chip:
    """One device of this machine, as measured. A CPU's devices exchange data through its memory."""
    here, x, add = machine(), jnp.ones(COPIED // 4, jnp.float32), jax.jit(lambda x, y: x + y)
    bandwidth = 2 * COPIED / fastest_run(lambda: add(x, x).block_until_ready()).seconds
    known = of_kind(here.device_kind)
    found = Chip(
        (here.device_kind,),
        peak(jnp.dtype(dtype)).flops,
        hbm_bytes=here.hbm_bytes,
        hbm_bandwidth=bandwidth,
        ragged_exchange=known.gpu is not None and known.ragged_exchange,  # see `exchange.has_ragged_all_to_all`
        fp8=known.fp8,
    )
    if jax.default_backend() != "cpu":
        return replace(found, **GPU_REACHES)
    return replace(found, link_bandwidth=bandwidth / 4, host_bandwidth=bandwidth, **CPU_REACHES)


def local_setting(job: Job) -> Setting:
    """The setting of a training on this machine, which is the topology of the job.

    Raises:
        UserError: the mesh does not fit its devices.
    """
    traits = OURS
    if jax.default_backend() == "cpu":
        traits = replace(CPU, block=query_block(job.config.sequence_length))
    return setting_of(job, measured_device(compute_dtype(job.config.compute).name), traits)


def setting_here(model: ModelConfig, config: TrainConfig, mesh: Mesh) -> Setting:
    """The setting of a training on a mesh of local devices: TPU slices, hosts with GPUs, or another machine."""
    known = _known_topology(mesh.devices.reshape(-1))
    job = Job(model, config, dict(mesh.shape), known or machine())
    return setting_of(job) if known else local_setting(job)


def _known_topology(devices: np.ndarray) -> Topology | None:
    """The topology of these devices; None if they are of no known chip."""
    kind = devices[0].device_kind
    generation = next((name for name, chip in CHIPS.items() if kind in chip.device_kinds), "")
    chip = CHIPS.get(generation)
    if chip and chip.gpu:
        hosts = -(-len(devices) // max(chip.gpu.of_host))
        return GpuHosts(generation, (len(devices),) if hosts == 1 else (hosts, len(devices) // hosts))
    if not chip or not chip.slices:
        return None
    places = np.array([device.coords for device in devices])[:, : chip.slices.dimensions]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    return Slices(generation, tuple(int(n) for n in np.ptp(places, axis=0) + 1), slices)


def check_state_fits(
    model: ModelConfig, config: TrainConfig, mesh: Mesh, stage: str, adapter: AdapterConfig | None = None
) -> None:
    """Refuse a training whose state alone is larger than the devices' memory, before anything is moved or allocated.

    On a CPU nothing else would: the system lets it allocate, and then ends the process without a word.

    Args:
        stage: the key of the stage in the recipe.
    """
    state, sizes = global_state(model, config.optimizer, adapter), tuple(mesh.shape.values())
    need = sum(device_bytes(part, sizes) for part in (state.parameters, state.optimizer, state.frozen))
    if need > (there := machine().hbm_bytes):
        raise UserError(
            f"{stage}: parameters and the optimizer's state take {need / 2**30:,.1f} GiB of a device, which has "
            f"{there / 2**30:,.1f}; use a smaller model, an adapter, or more devices along mesh.fsdp"
        )


def tell_expected_step(model: ModelConfig, config: TrainConfig, mesh: Mesh) -> dict:
    """Say how long a step of pretraining on local devices should take. With `run` of a plan, for the report."""
    setting = setting_here(model, config, mesh)
    found, size = estimate_step(setting), global_state(model, config.optimizer).total()
    restart = 0.0 if jax.default_backend() == "cpu" else RESTART_SECONDS  # other devices have to be found again
    worst = sorted(found.parts, key=found.parts.get, reverse=True)[:3]
    rate = setting.global_tokens / found.step_seconds
    say(
        f"pretrain: a step is predicted to take {moment(found.step_seconds)} on {setting.topology}, {rate:,.0f} "
        f"tokens/s: {', '.join(f'{name} {found.parts[name] / found.step_seconds:.0%}' for name in worst)}"
    )
    return {
        "topology": str(setting.topology),
        "step_seconds": found.step_seconds,
        "tokens_per_second": rate,
        "seconds": found.parts,
        "run": asdict(whole_run(config, setting, found, size, restart_seconds=restart)),
    }
