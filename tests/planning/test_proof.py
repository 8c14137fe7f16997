"""The proof of a recipe: what it says, when it is made anew, and what goes wrong."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tests.conftest import ROOT
from tests.planning.by_hand import DENSE, EXPERTS, TABLE
from tests.planning.programs import GATHER, PRODUCT, TORUS, looped
from tpullm.hardware.topologies import Slices, parse
from tpullm.planning import proof
from tpullm.planning.compiling import Executable, compile_apart, read_executable, write_executable
from tpullm.planning.memory import device_bytes, global_state
from tpullm.planning.program import job_of
from tpullm.planning.proof import Proof, fingerprint, look_at, program_hash, proof_of, prove
from tpullm.planning.setting import Job
from tpullm.planning.tpu_schedule import OBSERVED, schedule_on_tpu
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.system.errors import UserError

libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
GIB = 1 << 30
SLICE = parse("v5e:2x2")
VERSIONS = {"jax": "1", "libtpu": "1"}
FITS = Executable(looped(PRODUCT), 3 << 30, 0, ((0, 0), (0, 1), (1, 0), (1, 1)), 60.0, "2026-01-01T00:00:00", 1 << 30)
CONFIG = TrainConfig(batch_size=256, sequence_length=256)
JOB = Job(DENSE, CONFIG, {"fsdp": -1}, parse("v5e:16x16"))


def recipe(*overrides: str, layers: int = 2):
    settings = (f"--model.layers={layers}", "--pretrain.batch_size=8", "--pretrain.accumulation=1", *overrides)
    return load(ROOT / "configs" / "pretrain" / "125m.yaml", list(settings))


FULL = recipe("--model.remat=full")


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that has its answer ready; the list of what it was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proof, "compiler_versions", lambda topology: VERSIONS)
    asked = []
    monkeypatch.setattr(proof, "program_hash", lambda job, versions: "0123")
    monkeypatch.setattr(proof, "compile_apart", lambda job, name: asked.append(name) or FITS)
    return asked


def test_a_proof_survives_json_and_adds_up(compiler):
    said = []
    found = prove(recipe(), SLICE, said.append)
    again = Proof.from_json(json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found == prove(recipe(), SLICE, said.append)
    assert said == ["125m for v5e:2x2: compiling, a minute or two", "125m for v5e:2x2: compiled in 60 s"]
    assert compiler == ["125m for v5e:2x2"]
    assert found.mesh == {"data": 1, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 1}
    assert found.peak_bytes == 3 << 30 and found.limit_bytes == pytest.approx(15.75 * 2**30)
    assert sum(found.seconds.values()) == pytest.approx(found.step_seconds) == pytest.approx(32e-3 * OBSERVED)
    assert found.tokens == 8 * 2048 and not found.refused
    # Parameters, two moments: 12 bytes of each, a quarter here.
    parameters = 2 * (4 * 768**2 + 3 * 768 * 2048) + 32768 * 768
    assert found.state_bytes == pytest.approx(12 * parameters / 4, rel=0.01)
    assert found.evaluation_bytes == pytest.approx((1 << 30) + 8 * parameters / 4, rel=0.01), "and two moments"
    assert [finding.kind for finding in found.findings] == ["no_kernel"]


def test_a_proof_is_made_anew_when_the_compiler_is_told_something_else(monkeypatch):
    """By the environment, of the slice, or by an option of the compilation."""
    monkeypatch.setattr(proof, "traced_step", lambda *_: SimpleNamespace(as_text=lambda: "func.func @main() {\n  }"))
    monkeypatch.setattr(proof, "fingerprint", str)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    of = lambda name: program_hash(dataclasses.replace(JOB, topology=parse(name)), VERSIONS)  # noqa: E731
    slices, gpus = of("v5e:16x16"), of("h100:2x8")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "  ")
    assert of("v5e:16x16") == slices
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    assert of("v5e:16x16") != slices and of("h100:2x8") == gpus
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    monkeypatch.setattr(proof, "absent_options", lambda platform: {"xla_of_tomorrow": True})
    assert len({slices, gpus, of("v5e:16x16"), of("h100:2x8")}) == 4
    monkeypatch.undo()
    monkeypatch.setattr(proof, "traced_step", lambda *_: SimpleNamespace(as_text=lambda: ""))
    monkeypatch.setattr(proof, "fingerprint", str)
    told = of("v5e:16x16")
    monkeypatch.setattr(Slices, "rings", (False, False))
    assert of("v5e:16x16") != told


@pytest.mark.ci
def test_a_proof_is_made_anew_when_the_program_or_a_version_is_another_and_threads_trace_in_turn():
    def of(chosen, topology=SLICE, versions=VERSIONS):
        return program_hash(job_of(chosen, topology), versions)

    first = of(recipe())
    assert of(recipe()) == first
    assert of(recipe("--pretrain.log_every=7", "--seed=3")) == first  # no part of the step
    assert of(FULL) != first
    assert of(recipe(), parse("v6e:2x2")) != first
    assert of(recipe(), versions=VERSIONS | {"libtpu": "2"}) != first
    # Side by side, JAX found its stores occupied in seven of eight rounds.
    with ThreadPoolExecutor(2) as threads:
        hashes = threads.map(lambda one: program_hash(job_of(one, SLICE), VERSIONS), (recipe(), FULL))
    assert len(set(hashes)) == 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "the compiler was killed by signal 9, most likely for want of memory"),
        ("echo 'v5e:2x2: not so' >&2; exit 2", "^v5e:2x2: not so$"),
        ("echo 'Traceback' >&2; echo 'ValueError: x' >&2; exit 1", "this: the compiler failed: ValueError: x"),
        ("exit 0", "the compiler failed: no message"),
    ],
)
def test_a_compiler_that_dies_is_told_in_one_line(tmp_path, monkeypatch, script, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=message):
        compile_apart(JOB, "this")


def test_a_broken_file_is_as_none(tmp_path):
    path = tmp_path / "proofs" / "one.json.gz"
    write_executable(path, FITS)
    assert read_executable(path) == FITS
    for content in (b"", b"\x1f\x8b broken", b"{}"):
        path.write_bytes(content)
        assert read_executable(path) is None


@pytest.mark.ci
@libtpu
def test_the_compilers_refusal_is_a_proof_too(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = recipe("--pretrain.batch_size=1024", "--model.width=4608")
    found = prove(chosen, SLICE)
    assert found.peak_bytes > found.limit_bytes == pytest.approx(15.75 * 2**30)
    assert "set pretrain.accumulation to 2" in found.refused
    assert proof.proof_cache_file(found.program).exists() and prove(chosen, SLICE) == found


SEND = "%sent = (bf16[1024,1024]{1,0}, u32[], token[]) send(%x, %token), channel_id=6"
EVERYWHERE = "%sum = f32[1024]{0} all-reduce(%x), channel_id=4, replica_groups=[1,256]<=[256]"


def executable(*lines: str, **fields) -> Executable:
    text = looped(*lines, turns=4)
    return dataclasses.replace(FITS, **{"text": text, "peak_bytes": GIB, "places": TORUS[1]} | fields)


def test_a_proof_sums_a_programs_instructions():
    said = executable(PRODUCT, GATHER, EVERYWHERE)
    found = proof_of("mine", JOB, "hash", {"jax": "1"}, said)
    items = schedule_on_tpu(said.text, *TORUS)
    assert (found.recipe, found.topology, found.program, found.refused) == ("mine", "v5e:16x16", "hash", "")
    assert (found.peak_bytes, found.tokens, found.compile_seconds) == (GIB, 256 * 256, 60.0)
    assert found.step_seconds == pytest.approx(sum(item.seconds for item in items))
    assert found.seconds["feed-forward"] == pytest.approx(4e-3 * OBSERVED)
    assert found.seconds["waiting"] == pytest.approx(found.step_seconds - 4e-3 * OBSERVED)
    assert list(found.seconds.values()) == sorted(found.seconds.values(), reverse=True)
    assert found.limit_bytes == round(parse("v5e:16x16").chip.hbm_bytes)
    assert proof_of("mine", JOB, "hash", {}, dataclasses.replace(said, limit_bytes=5)).limit_bytes == 5
    rests = global_state(DENSE, CONFIG.optimizer)
    state = device_bytes(rests.parameters + rests.optimizer, (1, 256, 1, 1, 1))
    assert found.state_bytes == pytest.approx(state, abs=1)
    named = PRODUCT.replace("feed_forward", "attention").replace("%product", "%scores")
    items = schedule_on_tpu(looped(PRODUCT, named, named.replace("%scores", "%out"), turns=1), *TORUS)
    assert proof.seconds_by_part(items) == pytest.approx(
        {"attention": 2e-3 * OBSERVED, "feed-forward": 1e-3 * OBSERVED}
    )


def test_an_evaluation_that_does_not_fit_is_refused():
    """Beside it lies the optimizer's state, which no evaluation has as its input."""
    sizes, rests = (1, 256, 1, 1, 1), global_state(DENSE, CONFIG.optimizer)
    limit, optimizer = round(parse("v5e:16x16").chip.hbm_bytes), round(device_bytes(rests.optimizer, sizes))
    fits, not_ = (executable(PRODUCT, evaluation_bytes=limit - optimizer + more) for more in (0, 1))
    found = proof_of("mine", JOB, "hash", {}, fits)
    assert found.evaluation_bytes == limit and not found.refused and found.step_seconds
    found = proof_of("mine", JOB, "hash", {}, not_)
    assert found.peak_bytes == found.evaluation_bytes == limit + 1 and found.refused and not found.step_seconds


def test_traffic_by_axes_and_kind_the_dearest_first_and_between_slices():
    look = look_at(JOB, executable(PRODUCT, GATHER, GATHER.replace("%gather", "%other"), EVERYWHERE))
    gathers, sums = proof.traffic_of(look)
    assert (gathers.axes, gathers.kind, gathers.bytes) == ("fsdp", "all-gather", 2 * 4 * 2 * 4096 * 4096)
    assert (sums.axes, sums.kind, sums.bytes) == ("fsdp", "all-reduce", 4 * 4 * 1024)
    items = [item for item in look.items if item.collective and item.collective.kind == "all-gather"]
    assert gathers.exposed_seconds == pytest.approx(sum(item.seconds for item in items))
    assert gathers.seconds == pytest.approx(sum(item.busy_seconds for item in items))
    assert gathers.exposed_seconds > sums.exposed_seconds > 0
    alone = EVERYWHERE.replace("[1,256]<=[256]", "[256,1]<=[256]")
    assert len(proof.traffic_of(look_at(JOB, executable(GATHER, alone)))) == 1  # a device alone exchanges nothing
    job = dataclasses.replace(JOB, mesh={"data": 2, "fsdp": 256}, topology=parse("2 x v5e:16x16"))
    look = look_at(job, executable(SEND))
    assert look.mesh == {"data": 1, "fsdp": 256, "expert": 1, "sequence": 1, "tensor": 1}
    (one,) = proof.traffic_of(look)
    assert (one.axes, one.kind, one.bytes) == ("slices", "all-reduce", 4 * 2 * 1024 * 1024)
    assert one.seconds == pytest.approx(4 * 2 * 1024 * 1024 / 3.1e9 * OBSERVED) and one.exposed_seconds == 0


def test_what_is_expected_of_a_program():
    """The largest parameter is the table, or one layer's largest, with all its experts; `tensor` splits it."""
    look = look_at(JOB, executable(PRODUCT))
    assert (look.tokens, look.vocabulary, look.largest_parameter) == (256, 1024, TABLE) and TABLE == 512 * 1024
    large = dataclasses.replace(JOB, model=dataclasses.replace(DENSE, vocabulary_size=1 << 16))
    assert look_at(large, executable(PRODUCT)).largest_parameter == 512 << 16
    experts = dataclasses.replace(JOB, model=EXPERTS)
    assert look_at(experts, executable(PRODUCT)).largest_parameter == 8 * 512 * 1024
    split = dataclasses.replace(JOB, mesh={"fsdp": 128, "tensor": 2})
    look = look_at(split, executable(PRODUCT))
    assert (look.tokens, look.vocabulary, look.largest_parameter) == (512, 512, TABLE // 2)


def refused(peak: int, state: int, model=DENSE, mesh=None, **config) -> str:
    job = Job(model, dataclasses.replace(CONFIG, **config), mesh or {"fsdp": -1}, parse("v5e:4x4"))
    return proof.why_not_fit(job, dataclasses.replace(executable(), peak_bytes=peak), state, 16 * GIB)


def test_a_refusal_names_what_is_largest_and_the_key_to_change():
    assert "20.0 GiB a chip of 16.0" in refused(20 * GIB, 5 * GIB)
    assert "activations and gathered parameters (15.0): set pretrain.accumulation to 2" in refused(20 * GIB, 5 * GIB)
    assert "activations and gathered parameters (10.0)" in refused(20 * GIB, 10 * GIB)  # as much is not more
    state = refused(20 * GIB, 11 * GIB)
    assert "parameters and optimizer (11.0): set pretrain.optimizer.moments to bfloat16, or take more chips" in state
    for optimizer in (OptimizerConfig(kind="adafactor"), OptimizerConfig(moments="bfloat16")):
        assert refused(20 * GIB, 11 * GIB, optimizer=optimizer).endswith("(11.0): take more chips (topology)")
    more = refused(20 * GIB, GIB, accumulation=8)
    assert more.endswith("set pretrain.accumulation to 16")
    least = refused(20 * GIB, GIB, accumulation=16, model=dataclasses.replace(DENSE, remat="none"))
    assert least.endswith("set model.remat to full")
    full = dataclasses.replace(DENSE, remat="full")
    assert "give mesh.sequence or mesh.tensor more devices" in refused(20 * GIB, GIB, accumulation=16, model=full)
    shared = refused(20 * GIB, GIB, accumulation=16, model=full, mesh={"fsdp": 8, "tensor": 2})
    assert shared.endswith("set pretrain.accumulation to 32")


PROGRAM = """module @jit_step {
  func.func public @main(%arg0: tensor<f32>) -> tensor<f32> {
    %0 = call @twice(%arg0) : (tensor<f32>) -> tensor<f32>
    %1 = call @again(%0) : (tensor<f32>) -> tensor<f32>
    return %1 : tensor<f32>
  }
  func.func private @twice(%arg0: tensor<f32>) -> tensor<f32> {
    %0 = stablehlo.add %arg0, %arg0 : tensor<f32>
    return %0 : tensor<f32>
  }
  func.func private @again(%arg0: tensor<f32>) -> tensor<f32> {
    %0 = stablehlo.add %arg0, %arg0 : tensor<f32>
    return %0 : tensor<f32>
  }
}
"""
SHARED = PROGRAM[: PROGRAM.index("  func.func private @again")].replace("@again", "@twice") + "}\n"
TRACED = """
import sys
import jax
import tpullm
from tests.planning.test_proof import SLICE, VERSIONS, job_of, parse, program_hash, recipe
if "warm" in sys.argv:
    program_hash(job_of(recipe("--model.remat=full"), SLICE), VERSIONS)
for topology in (SLICE, parse("h100:4")):
    print(program_hash(job_of(recipe(), topology), VERSIONS))
print(jax.__file__, tpullm.__file__)
"""


def test_a_fingerprint_is_of_what_functions_compute_and_not_of_their_names():
    assert fingerprint(PROGRAM) == fingerprint(PROGRAM.replace("@twice", "@twice_7")) == fingerprint(SHARED)
    assert fingerprint(PROGRAM) != fingerprint(SHARED.replace("stablehlo.add", "stablehlo.multiply"))
    assert fingerprint(PROGRAM) != fingerprint(PROGRAM.replace("@jit_step", "@jit_other"))
    swapped = PROGRAM.replace("call @again(%0)", "call @again(%arg0)")
    assert fingerprint(PROGRAM) != fingerprint(swapped)


@pytest.mark.ci
def test_it_is_the_same_in_a_process_that_has_traced_before_and_wherever_the_sources_are(tmp_path):
    """JAX names functions otherwise in a second trace, and kernels name the files and lines that they come from."""
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "jax").symlink_to(Path(jax.__file__).parent)
    (tmp_path / "tpullm").unlink()
    shutil.copytree(ROOT / "tpullm", tmp_path / "tpullm")
    for kernels in (tmp_path / "tpullm" / "model").rglob("*.py"):
        kernels.write_text("\n\n" + kernels.read_text(encoding="utf-8"), encoding="utf-8")
    run = [
        subprocess.run([sys.executable, "-c", TRACED, kind], cwd=folder, capture_output=True, text=True)
        for kind, folder in (("cold", ROOT), ("warm", tmp_path))
    ]
    (*first, here), (*second, there) = (done.stdout.splitlines() for done in run)
    assert first == second and len(set(first)) == 2, run[0].stderr + run[1].stderr
    assert not set(here.split()) & set(there.split())
