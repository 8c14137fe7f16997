"""This machine as a topology, and what was measured of it."""

from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.planning.by_hand import DENSE
from tpullm.hardware.peak_flops import Fastest, Peak
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture, parameter_count
from tpullm.model.mesh import make_mesh, planned_mesh
from tpullm.planning import this_machine
from tpullm.planning.economics import estimate_step
from tpullm.planning.setting import CPU, OURS, Job
from tpullm.planning.this_machine import CPU_REACHES, GPU_REACHES
from tpullm.recipe.schema import AdapterConfig, TrainConfig
from tpullm.system.errors import UserError

CONFIG = TrainConfig(batch_size=8, sequence_length=256)


@pytest.fixture
def quick(monkeypatch):
    """A device of 1e12 FLOP/s, whose memory moves 1e10 bytes a second."""
    this_machine.measured_device.cache_clear()
    monkeypatch.setattr(this_machine, "peak", lambda dtype: Peak(1e12))
    monkeypatch.setattr(this_machine, "COPIED", 1 << 12)
    monkeypatch.setattr(this_machine, "fastest_run", lambda work: (work(), Fastest(2 * (1 << 12) / 1e10, False))[1])
    yield
    this_machine.measured_device.cache_clear()


def test_a_machine_is_a_line_of_devices_which_share_the_memory_of_a_cpu(monkeypatch):
    here = this_machine.machine()
    assert here.chips == jax.device_count() and here.shape == (here.chips,) and here.slices == 1
    assert 1 << 28 < here.hbm_bytes < 1 << 45 and here.device_kind == jax.local_devices()[0].device_kind
    assert str(here) == here.generation == "local"
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(this_machine.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.get)
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: None, device_kind="cpu")])
    assert this_machine.machine().hbm_bytes == 1024_000
    # What a device says counts.
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 123}, device_kind="a GPU")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert this_machine.machine().hbm_bytes == 123 and this_machine.machine().device_kind == "a GPU"


def test_devices_of_a_cpu_speak_through_its_memory(quick, monkeypatch):
    found = this_machine.measured_device("float32")
    assert found.peak_flops == 1e12 and found.hbm_bandwidth == pytest.approx(1e10)
    assert found.link_bandwidth == found.hbm_bandwidth / 4 and found.host_bandwidth == found.hbm_bandwidth
    assert {name: getattr(found, name) for name in CPU_REACHES} == CPU_REACHES
    assert not found.ragged_exchange and not found.offloads_collectives and not found.attention
    this_machine.measured_device.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = this_machine.measured_device("float32")
    assert {name: getattr(found, name) for name in GPU_REACHES} == GPU_REACHES


def test_a_training_here_has_the_traits_of_a_cpu(quick, monkeypatch):
    count = jax.device_count()
    job = Job(DENSE, CONFIG, {"data": count}, this_machine.machine())
    of = this_machine.local_setting(job)
    assert of.traits == CPU.__class__(**{**vars(CPU), "block": 128}) and of.topology.generation == "local"
    found = this_machine.tell_expected_step(DENSE, CONFIG, make_mesh({"data": count}))
    step = estimate_step(of)
    assert found["topology"] == "local" and found["step_seconds"] == step.step_seconds
    assert found["tokens_per_second"] == pytest.approx(8 * 256 / step.step_seconds)
    assert sum(found["seconds"].values()) == pytest.approx(found["step_seconds"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert this_machine.local_setting(job).traits == OURS


@pytest.mark.parametrize(
    ("fsdp", "adapter", "fits"),
    [(1, None, 13), (2, None, 7), (1, AdapterConfig(rank=2), 3)],
    ids=["one", "two", "lora"],
)
def test_a_state_larger_than_the_memory_is_refused(fsdp, adapter, fits, monkeypatch):
    """AdamW keeps 12 bytes a parameter, in float32; frozen parameters have 2 bytes."""
    mesh, count = planned_mesh({"fsdp": fsdp}, fsdp), parameter_count(Architecture(DENSE).shapes)
    for memory in (fits, fits - 2):
        monkeypatch.setattr(this_machine, "machine", lambda memory=memory: SimpleNamespace(hbm_bytes=memory * count))
        refused = pytest.raises(UserError, match="talk: .* GiB of a device") if memory < fits else nullcontext()
        with refused:
            this_machine.check_state_fits(DENSE, CONFIG, mesh, "talk", adapter)


@pytest.mark.parametrize("name", ["v6e:4x4", "v5p:2x2x4", "2 x v5e:2x2", "v6e:1x1", "tpu7x:2x2x1"])
def test_devices_of_a_tpu_are_their_slice(name):
    """By the coordinates of their chips, wherever these begin."""
    of = parse(name)
    shape = (*of.shape, 1)[:3]
    devices = [
        SimpleNamespace(device_kind=of.device_kind, slice_index=n, coords=tuple(np.add(place, 4)))
        for n in range(of.slices)
        for place in np.ndindex(shape)
        for _ in range(of.chip.devices_per_chip)
    ]
    assert len(devices) == of.devices
    assert this_machine._known_topology(np.array(devices)) == of
    unknown = SimpleNamespace(device_kind="TPU v4", coords=(0, 0, 0))
    assert this_machine._known_topology(np.array([unknown])) is None


@pytest.mark.parametrize(("count", "name"), [(1, "h100:1"), (8, "h100:8"), (32, "h100:4x8")])
def test_devices_of_a_known_gpu_are_its_hosts(count, name):
    devices = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3") for _ in range(count)]
    assert this_machine._known_topology(np.array(devices)) == parse(name)


def test_a_mesh_of_tpus_is_planned_by_its_slice(monkeypatch):
    monkeypatch.setattr(this_machine, "_known_topology", lambda devices: parse("v6e:1x1"))
    mesh = SimpleNamespace(shape={"fsdp": 1}, devices=np.array([None]))
    of = this_machine.setting_here(DENSE, CONFIG, mesh)
    assert of.topology == parse("v6e:1x1") and of.device is of.topology.chip


def test_the_bandwidth_is_of_reading_and_writing_one_array(monkeypatch):
    made, ones = [], this_machine.jnp.ones
    monkeypatch.setattr(this_machine, "COPIED", 1 << 12)
    monkeypatch.setattr(this_machine.jnp, "ones", lambda *of: made.append(ones(*of)) or made[-1])
    monkeypatch.setattr(this_machine, "fastest_run", lambda work: (work(), Fastest(0.5, False))[1])
    monkeypatch.setattr(this_machine, "peak", lambda dtype: SimpleNamespace(flops=1e12))
    assert this_machine.measured_device.__wrapped__("float32").hbm_bandwidth == 2 * (1 << 12) / 0.5
    assert made[0].nbytes == 1 << 12
