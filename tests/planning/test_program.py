"""The program for chips that are not here: what the compiler is told, and what is made of its errors."""

import dataclasses
import gzip
import json
import os
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from tests.planning.by_hand import DENSE
from tpullm.hardware.topologies import parse
from tpullm.planning import compiling, program
from tpullm.planning.compiling import Job
from tpullm.planning.program import QUIET, TooLarge, absent_mesh, abstract_batch, compiled, compiler_mesh
from tpullm.recipe.schema import TrainConfig
from tpullm.system.errors import UserError

CONFIG = TrainConfig(batch_size=8, sequence_length=256)
FULL = "RESOURCE_EXHAUSTED: total memory required by the program (20.5G) exceeds available HBM (15.75G) by 4.75G"


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


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


@pytest.mark.parametrize(("name", "what", "extra"), [("v6e:4x4", "TPU", "tpu"), ("h100:8", "GPU", "gpu-plan")])
def test_a_missing_compiler_is_one_line(monkeypatch, name, what, extra):
    monkeypatch.setattr(program, "version", failing(PackageNotFoundError()))
    line = rf"^{name}: the {what} compiler is missing; install it: pip install 'tpullm\[{extra}\]'$"
    with pytest.raises(UserError, match=line):
        compiler_mesh({"fsdp": -1}, parse(name))


def test_another_error_of_the_compiler_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(topologies, "get_topology_desc", failing(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        compiler_mesh({"fsdp": -1}, parse("v6e:4x4"))


def test_too_large_a_program_says_how_large(monkeypatch):
    lowered = lambda error: lambda *_: SimpleNamespace(compile=failing(error))  # noqa: E731
    monkeypatch.setattr(program, "traced", lowered(jax.errors.JaxRuntimeError(FULL)))
    with pytest.raises(TooLarge, match=r"needs 20.5 GiB a chip and may use 15.8") as caught:
        compiled(DENSE, CONFIG, absent_mesh({}, parse("v6e:1x1")))
    assert (caught.value.needed_bytes, caught.value.limit_bytes) == (20.5 * 2**30, 15.75 * 2**30)
    monkeypatch.setattr(program, "traced", lowered(jax.errors.JaxRuntimeError("another")))
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        compiled(DENSE, CONFIG, absent_mesh({}, parse("v6e:1x1")))


def test_a_gpu_program_above_the_memory_is_refused_by_us(monkeypatch):
    """XLA for GPUs compiles it. JAX takes three quarters of a card with 79.1 GiB."""
    asked, mesh = {}, absent_mesh({}, parse("h100:1"))

    def told(peak):
        said = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(peak_memory_in_bytes=peak))
        compile_ = lambda compiler_options: asked.update(compiler_options) or said  # noqa: E731
        monkeypatch.setattr(program, "traced", lambda *_: SimpleNamespace(compile=compile_))
        return compiled(DENSE, CONFIG, mesh)

    assert told(59 << 30) and asked == {"xla_gpu_enable_cub_radix_sort": False}
    with pytest.raises(TooLarge, match=r"needs 60.0 GiB a chip and may use 59.3"):
        told(60 << 30)


@pytest.mark.parametrize(
    ("memory", "peak"),
    [
        ({"host_temp_size_in_bytes": 0, "total_allocation_bytes": 9}, 5),
        ({"host_temp_size_in_bytes": 1, "total_allocation_bytes": 9}, 9),  # the host's part counts in the peak
        ({"host_temp_size_in_bytes": 1}, 5),  # JAX 0.10
    ],
)
def test_what_the_compiler_says_of_a_step(monkeypatch, memory, peak):
    of_evaluation = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(peak_memory_in_bytes=4))
    executable = SimpleNamespace(
        as_text=lambda: "HloModule", memory_analysis=lambda: SimpleNamespace(peak_memory_in_bytes=5, **memory)
    )
    found = compile_with(monkeypatch, lambda *_, evaluation=False: of_evaluation if evaluation else executable)
    assert (found.text, found.peak_bytes, found.limit_bytes, found.evaluation_bytes) == ("HloModule", peak, 0, 4)
    assert found.places == ((1, 2), (1, 3)) and found.seconds == 2.3
    assert len(found.date) == len("2026-01-01T00:00:00")


def test_what_is_refused_has_no_text(monkeypatch):
    found = compile_with(monkeypatch, failing(TooLarge(20, 16)))
    assert (found.text, found.peak_bytes, found.limit_bytes, found.evaluation_bytes) == ("", 20, 16, 0)


def test_an_evaluation_may_need_more_than_the_step(monkeypatch):
    said = SimpleNamespace(peak_memory_in_bytes=5, host_temp_size_in_bytes=0)
    step = SimpleNamespace(as_text=lambda: "HloModule", memory_analysis=lambda: said)
    refused = failing(TooLarge(20, 16))
    found = compile_with(monkeypatch, lambda *_, evaluation=False: refused() if evaluation else step)
    assert (found.text, found.peak_bytes, found.evaluation_bytes) == ("HloModule", 5, 20)


def compile_with(monkeypatch, compile_):
    devices = np.array([SimpleNamespace(coords=(1, 2, 0)), SimpleNamespace(coords=(1, 3, 0))])
    monkeypatch.setattr(compiling, "compiler_mesh", lambda *_: SimpleNamespace(devices=devices))
    monkeypatch.setattr(compiling, "compiled", compile_)
    times = iter([100.0, 102.34])
    monkeypatch.setattr(compiling.time, "monotonic", lambda: next(times))
    return compiling._compile(Job(DENSE, CONFIG, {"fsdp": -1}, parse("v6e:4x4")))


def test_the_step_is_traced_on_an_absent_mesh_for_a_tpu():
    small = dataclasses.replace(DENSE, layers=1)
    text = program.traced(small, CONFIG, absent_mesh({"fsdp": -1}, parse("v6e:2x2"))).as_text()
    assert "num_partitions = 4" in text and "splash" in text
    forward = program.traced(small, CONFIG, absent_mesh({"fsdp": -1}, parse("v6e:2x2")), evaluation=True).as_text()
    assert "num_partitions = 4" in forward and "optimizer" not in forward and len(forward) < len(text) / 2


def test_a_result_counts_if_its_process_ended_well(tmp_path, monkeypatch):
    """What an earlier process left there is not the result of one that fails."""
    path = tmp_path / "one.json.gz"
    executable = compiling.Executable("HloModule", 5, 0, ((0, 0),), 1.0, "2026-01-01T00:00:00", 3)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(executable), file)
    job = Job(DENSE, CONFIG, {"fsdp": -1}, parse("v6e:2x2"))
    monkeypatch.setattr(compiling.sys, "executable", "/bin/true")
    assert compiling.compile_apart(job, path, "this") == executable == compiling.read(path)
    monkeypatch.setattr(compiling.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="failed: no message"):
        compiling.compile_apart(job, tmp_path / "new" / "folder" / "one.json.gz", "this")
    assert (tmp_path / "new" / "folder").is_dir()
    with pytest.raises(UserError, match="this: the compiler failed: no message"):
        compiling.compile_apart(job, path, "this")
