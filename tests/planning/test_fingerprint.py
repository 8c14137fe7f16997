"""The hash of a traced program: what it computes counts, and not what its functions are called."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.conftest import ROOT
from tpullm.planning.proof import fingerprint

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


def test_names_of_functions_and_sharing_of_equal_ones_change_nothing():
    assert fingerprint(PROGRAM) == fingerprint(PROGRAM.replace("@twice", "@twice_7")) == fingerprint(SHARED)


def test_what_a_function_computes_counts():
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
