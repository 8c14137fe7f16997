"""The proof of a recipe: what it says, when it is made anew, and what goes wrong."""

import dataclasses
import errno
import importlib.util
import io
import json
import os
import pickle
import sys
import threading
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.planning.programs import PRODUCT, looped
from tpullm.hardware.topologies import parse
from tpullm.planning import compiling, program, proof
from tpullm.planning.compiling import Executable, compile_apart, read
from tpullm.planning.proof import Proof, cached_at, job_of, program_hash, prove
from tpullm.planning.tpu_schedule import OBSERVED
from tpullm.recipe.parsing import load
from tpullm.system.errors import UserError

libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
SLICE = parse("v5e:2x2")
VERSIONS = {"jax": "1", "libtpu": "1"}
FITS = Executable(looped(PRODUCT), 3 << 30, 0, ((0, 0), (0, 1), (1, 0), (1, 1)), 60.0, "2026-01-01T00:00:00", 1 << 30)
TOO_LARGE = dataclasses.replace(FITS, text="", peak_bytes=40 << 30, limit_bytes=15 << 30, evaluation_bytes=0)


def recipe(*overrides: str, layers: int = 2):
    settings = (f"--model.layers={layers}", "--pretrain.batch_size=8", "--pretrain.accumulation=1", *overrides)
    return load(ROOT / "configs" / "pretrain" / "125m.yaml", list(settings))


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that has its answer ready; the list of what it was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proof, "compiler_versions", lambda topology: VERSIONS)
    asked = []

    def compile_apart(job, path, name):
        asked.append(name)
        return FITS if len(asked) == 1 else TOO_LARGE

    monkeypatch.setattr(proof, "compile_apart", compile_apart)
    return asked


def test_a_proof_survives_json_and_adds_up(compiler):
    said = []
    found = prove(recipe(), SLICE, said.append)
    assert Proof.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert said == ["125m for v5e:2x2: compiling, a minute or two", "125m for v5e:2x2: compiled in 60 s"]
    assert found.mesh == {"data": 1, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 1}
    assert found.peak_bytes == 3 << 30 and found.limit_bytes == pytest.approx(15.75 * 2**30)
    assert sum(found.seconds.values()) == pytest.approx(found.step_seconds) == pytest.approx(32e-3 * OBSERVED)
    assert found.tokens == 8 * 2048 and not found.refused
    # Parameters, two moments: 12 bytes of each, a quarter here.
    parameters = 2 * (4 * 768**2 + 3 * 768 * 2048) + 32768 * 768
    assert found.state_bytes == pytest.approx(12 * parameters / 4, rel=0.01)
    assert found.evaluation_bytes == pytest.approx((1 << 30) + 8 * parameters / 4, rel=0.01), "and two moments"
    assert [finding.kind for finding in found.findings] == ["no_kernel"]


@pytest.mark.ci
def test_a_proof_is_made_anew_when_the_program_or_a_version_is_another():
    def of(chosen, topology=SLICE, versions=VERSIONS):
        return program_hash(job_of(chosen, topology), versions)

    first = of(recipe())
    assert of(recipe()) == first
    assert of(recipe("--pretrain.log_every=7", "--seed=3")) == first  # no part of the step
    assert of(recipe("--model.remat=full")) != first
    assert of(recipe(), parse("v6e:2x2")) != first
    assert of(recipe(), versions=VERSIONS | {"libtpu": "2"}) != first


@pytest.mark.parametrize(
    ("settings", "chips", "key"),
    [
        ((), "v5e:2x2", "activations and gathered parameters .*: set pretrain.accumulation to 2"),
        (("--pretrain.batch_size=4",), "v5e:2x2", "set model.remat to full"),
        (("--pretrain.batch_size=4", "--model.remat=full"), "v5e:2x2", "give mesh.sequence or mesh.tensor more"),
        (
            ("--model.width=24576",),
            "v5e:2x2",
            "parameters and optimizer .*: set pretrain.optimizer.moments to bfloat16",
        ),
        (("--model.width=36864", "--pretrain.optimizer.kind=adafactor"), "v5e:2x2", "take more chips"),
    ],
)
def test_what_is_too_large_says_what_is_largest_and_which_key_to_change(compiler, settings, chips, key):
    compiler.append("")
    found = prove(recipe(*settings), parse(chips))
    assert found.step_seconds == 0 and not found.findings
    with pytest.raises(AssertionError, match=f"does not fit: 40.0 GiB a chip of 15.0, by the compiler; .*{key}"):
        raise AssertionError(found.refused)


def test_what_can_not_be_planned_is_told_in_one_line(compiler, monkeypatch):
    with pytest.raises(UserError, match="batch_size"):
        prove(recipe("--pretrain.batch_size=7"), SLICE)
    with pytest.raises(UserError, match="tokenizer.vocabulary_size: 0 is known only after"):
        prove(recipe("--tokenizer.vocabulary_size=0"), SLICE)
    monkeypatch.undo()
    monkeypatch.setattr(program, "version", lambda name: (_ for _ in ()).throw(program.PackageNotFoundError(name)))
    with pytest.raises(UserError, match=r"the TPU compiler is missing; install it: pip install 'tpullm\[tpu\]'"):
        prove(recipe(), SLICE)


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
    path = tmp_path / "proofs" / "one.json.gz"
    with pytest.raises(UserError, match=message):
        compile_apart(job_of(recipe(), SLICE), path, "this")
    assert read(path) is None


def test_what_can_not_be_kept_is_told_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/proofs: can't be made .* set XDG_CACHE_HOME to another place"):
        compile_apart(job_of(recipe(), SLICE), tmp_path / "file" / "proofs" / "one.json.gz", "this")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pickle.dumps(None))))
    monkeypatch.setattr(compiling, "_compile", lambda job: FITS)
    monkeypatch.setattr(os, "replace", full)
    assert compiling._main(tmp_path / "one.json.gz") == 2
    assert "can't be written there (No space left on device); make room" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_file_is_as_none(tmp_path):
    for content in (b"", b"\x1f\x8b broken", b"{}"):
        path = tmp_path / "one.json.gz"
        path.write_bytes(content)
        assert read(path) is None


@pytest.mark.ci
@libtpu
def test_the_compilers_refusal_is_a_proof_too(monkeypatch, tmp_path):
    """Of a program that is far too large; the compiler says so in seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = recipe("--pretrain.batch_size=1024", "--model.width=4608")
    found = prove(chosen, SLICE)
    assert found.peak_bytes > found.limit_bytes == pytest.approx(15.75 * 2**30)
    assert "set pretrain.accumulation to 2" in found.refused
    assert cached_at(found.program).exists() and prove(chosen, SLICE) == found


@pytest.mark.ci
def test_threads_trace_one_after_the_other():
    """Side by side, JAX found its stores occupied in seven of eight rounds."""
    hashes = []
    for width in (768, 864, 960):
        chosen = [recipe(f"--model.width={width}", f"--model.remat={remat}") for remat in ("none", "full")]
        trace = lambda one: hashes.append(program_hash(job_of(one, SLICE), VERSIONS))  # noqa: E731
        threads = [threading.Thread(target=trace, args=(one,)) for one in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(hashes)) == 6


@libtpu
@pytest.mark.slow
def test_two_plans_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, chosen = [], [recipe(), recipe("--model.remat=full")]
    threads = [threading.Thread(target=lambda one=one: found.append(prove(one, SLICE))) for one in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.program for one in found}) == 2
    assert all(0 < one.peak_bytes < one.limit_bytes and one.step_seconds > 0 for one in found)
    assert all(one.seconds["attention kernel"] > 0 and one.seconds["feed-forward"] > 0 for one in found)
