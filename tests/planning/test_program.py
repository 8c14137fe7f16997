"""The program for chips that are not here: what the compiler is told, and what is made of its errors."""

import dataclasses
import os
import re
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from tests.planning.by_hand import DENSE
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import Architecture
from tpullm.planning import compiling, program
from tpullm.planning.program import (
    QUIET,
    TooLarge,
    absent_mesh,
    abstract_batch,
    compiled_step,
    compiler_environment,
    compiler_mesh,
    compiler_versions,
)
from tpullm.planning.setting import Job
from tpullm.recipe.schema import TrainConfig
from tpullm.system.errors import UserError

CONFIG = TrainConfig(batch_size=8, sequence_length=256)
JOB = Job(dataclasses.replace(DENSE, layers=1), CONFIG, {"fsdp": -1}, parse("v6e:4x4"))
FULL = "RESOURCE_EXHAUSTED: total memory required by the program (20.5G) exceeds available HBM (15.75G) by 4.75G"


def test_a_mesh_of_absent_chips_has_their_kind():
    mesh = absent_mesh({"fsdp": -1}, parse("v6e:4x4"))
    assert mesh.shape["fsdp"] == 16 and mesh.abstract_device.device_kind == "TPU v6 lite"
    assert mesh.abstract_device.num_cores == 1 and mesh.abstract_device.platform == "tpu"
    batch = abstract_batch(CONFIG, mesh)
    assert {leaf.shape for leaf in jax.tree.leaves(batch)} == {(8, 256)}
    assert batch.inputs.dtype == jnp.int32 and batch.weights.dtype == jnp.float32
    assert batch.targets.sharding.spec[0] == ("data", "fsdp", "expert")


def test_the_compiler_is_told_the_slice_while_it_is_quiet(monkeypatch):
    asked = {}

    def described(**options):
        asked.update(options, quiet=[os.environ.get(name) for name in QUIET])
        os.environ["LEFT_BY_LIBTPU"] = "1"
        return SimpleNamespace(devices=["a device"])

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    monkeypatch.setattr(program, "arrange_devices", lambda sizes, devices: np.array(jax.devices()[:1]).reshape(sizes))
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "the user's")
    before = dict(os.environ)
    mesh = compiler_mesh({"fsdp": 1}, parse("v6e:1x1"))
    assert asked.pop("quiet") == ["the user's", "localhost", "1"] and dict(os.environ) == before
    assert asked == {"platform": "tpu", "topology_name": "v6e:1x1"} | parse("v6e:1x1").described()
    assert mesh.devices.size == 1 and "Explicit" in str(mesh.axis_types)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder for the GPU compiler, in an environment without any compiler."""
    monkeypatch.setattr(program, "GPU_COMPILER", tmp_path / "a folder")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(program, "version", {"jax": "0.12.1", "jaxlib": "0.12.0"}.get)
    return tmp_path / "a folder"


GPU_INSTALL = "--upgrade --target '{folder}' jax-cuda13-plugin==0.12.0"


@pytest.mark.parametrize(
    ("name", "what", "install"), [("v6e:4x4", "TPU", "'tpullm[tpu]'"), ("h100:8", "GPU", GPU_INSTALL)]
)
def test_a_missing_compiler_is_one_line(folder, name, what, install):
    line = f"{name}: the {what} compiler is missing; install it: pip install {install.format(folder=folder)}"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        compiler_mesh({"fsdp": -1}, parse(name))


def test_the_gpu_compiler_is_found_in_its_folder_if_it_is_of_the_version_of_jaxlib(folder, monkeypatch):
    """Where the line above puts it; only a process that compiles for GPUs gets the folder on its path."""
    for version in ("0.10.2", "0.12.0"):
        with pytest.raises(UserError, match="the GPU compiler is missing"):
            compiler_versions(parse("h100:8"))
        (folder / f"jax_cuda13_plugin-{version}.dist-info").mkdir(parents=True)
        told = f"Metadata-Version: 2.1\nName: jax-cuda13-plugin\nVersion: {version}\n"
        (folder / f"jax_cuda13_plugin-{version}.dist-info" / "METADATA").write_text(told)
    assert compiler_versions(parse("h100:8")) == {"jax": "0.12.1", "jax-cuda13-plugin": "0.12.0"}
    monkeypatch.setenv("PYTHONPATH", "own")
    paths = [compiler_environment(parse(name))["PYTHONPATH"] for name in ("h100:8", "v6e:4x4")]
    assert paths == [f"{folder}{os.pathsep}own", "own"]


def test_too_large_a_program_says_how_large_and_another_error_stays_what_it_is(monkeypatch):
    compile_ = Mock(side_effect=[jax.errors.JaxRuntimeError(FULL), jax.errors.JaxRuntimeError("another")])
    monkeypatch.setattr(program, "traced_step", lambda *_: SimpleNamespace(compile=compile_))
    with pytest.raises(TooLarge) as caught:
        compiled_step(JOB, absent_mesh({}, parse("v6e:1x1")))
    assert (caught.value.needed_bytes, caught.value.limit_bytes) == (20.5 * 2**30, 15.75 * 2**30)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        compiled_step(JOB, absent_mesh({}, parse("v6e:1x1")))


def analyzed(peak: int, text: str = "", **memory):
    said = SimpleNamespace(peak_memory_in_bytes=peak, **{"host_temp_size_in_bytes": 0} | memory)
    return SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: said)


def test_a_gpu_program_above_the_memory_is_refused_by_us(monkeypatch):
    """XLA for GPUs compiles it. JAX takes three quarters of a card with 79.1 GiB."""
    asked, mesh = {}, absent_mesh({}, parse("h100:1"))

    def told(peak):
        compile_ = lambda compiler_options: asked.update(compiler_options) or analyzed(peak)  # noqa: E731
        monkeypatch.setattr(program, "traced_step", lambda *_: SimpleNamespace(compile=compile_))
        return compiled_step(JOB, mesh)

    assert told(59 << 30) and asked == {"xla_gpu_enable_cub_radix_sort": False}
    with pytest.raises(TooLarge) as caught:
        told(60 << 30)
    assert caught.value.limit_bytes == pytest.approx(59.3 * 2**30, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "evaluation", "told"),
    [
        (analyzed(5, "HloModule", total_allocation_bytes=9), analyzed(4), ("HloModule", 5, 0, 4)),
        # The host's part counts in the peak.
        (analyzed(5, "x", host_temp_size_in_bytes=1, total_allocation_bytes=9), analyzed(4), ("x", 9, 0, 4)),
        (analyzed(5, "x", host_temp_size_in_bytes=1), analyzed(4), ("x", 5, 0, 4)),  # JAX 0.10
        (TooLarge(20, 16), None, ("", 20, 16, 0)),
        (analyzed(5, "x"), TooLarge(20, 16), ("x", 5, 0, 20)),
    ],
)
def test_what_the_compiler_says_of_a_step_and_of_an_evaluation(monkeypatch, step, evaluation, told):
    devices = np.array([SimpleNamespace(coords=(1, 2, 0)), SimpleNamespace(coords=(1, 3, 0))])
    monkeypatch.setattr(compiling, "compiler_mesh", lambda *_: SimpleNamespace(devices=devices))
    monkeypatch.setattr(compiling, "compiled_step", Mock(side_effect=[step, evaluation]))
    found = compiling.compile_here(JOB)
    assert (found.text, found.peak_bytes, found.limit_bytes, found.evaluation_bytes) == told
    assert found.places == ((1, 2), (1, 3)) and found.seconds < 1
    assert len(found.date) == len("2026-01-01T00:00:00")


def test_a_devices_number_on_its_chip_is_a_coordinate_where_there_are_several(monkeypatch):
    both = np.array([SimpleNamespace(coords=(1, 2, 0), core_on_chip=core) for core in range(2)])
    monkeypatch.setattr(compiling, "compiler_mesh", lambda *_: SimpleNamespace(devices=both))
    monkeypatch.setattr(compiling, "compiled_step", Mock(side_effect=TooLarge(20, 16)))
    found = compiling.compile_here(dataclasses.replace(JOB, topology=parse("tpu7x:1x1x1")))
    assert found.places == ((1, 2, 0, 0), (1, 2, 0, 1))


def test_the_step_is_traced_on_an_absent_mesh_for_a_tpu():
    """XLA dissolves a loop of one micro-batch, and would compute two forward passes first but for a barrier in the
    step, over all parameters and gradients. The barriers of recomputation are narrow."""
    job = dataclasses.replace(JOB, config=dataclasses.replace(CONFIG, accumulation=2), topology=parse("v6e:2x2"))
    mesh = absent_mesh(job.mesh, job.topology)
    step, forward = (program.traced_step(job, mesh, evaluation).as_text() for evaluation in (False, True))
    assert "num_partitions = 4" in step and "splash" in step
    assert "num_partitions = 4" in forward and "optimizer" not in forward and len(forward) < len(step) / 2
    barriers = [line.split(" : ")[0] for line in step.splitlines() if "optimization_barrier" in line]
    parameters = len(jax.tree.leaves(Architecture(job.model).shapes))
    assert max(line.count("%") - 1 for line in barriers) > 2 * parameters
