"""The hash of a traced program: what it computes counts, and not what its functions are called."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.conftest import ROOT
from tpullm.planning.fingerprint import fingerprint

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
import pytest
from tests.planning.test_proof import SLICE, VERSIONS, job_of, program_hash, recipe
if "warm" in sys.argv:
    program_hash(job_of(recipe("--model.remat=full"), SLICE), VERSIONS)
print(program_hash(job_of(recipe(), SLICE), VERSIONS), jax.__file__)
"""


def test_names_of_functions_and_sharing_of_equal_ones_change_nothing():
    assert fingerprint(PROGRAM) == fingerprint(PROGRAM.replace("@twice", "@twice_7")) == fingerprint(SHARED)


def test_what_a_function_computes_counts():
    assert fingerprint(PROGRAM) != fingerprint(SHARED.replace("stablehlo.add", "stablehlo.multiply"))
    assert fingerprint(PROGRAM) != fingerprint(PROGRAM.replace("@jit_step", "@jit_other"))
    swapped = PROGRAM.replace("call @again(%0)", "call @again(%arg0)")
    assert fingerprint(PROGRAM) != fingerprint(swapped)


@pytest.mark.ci
def test_it_is_the_same_in_a_process_that_has_traced_before_and_wherever_jax_is_installed(tmp_path):
    """JAX shares what it has traced: a first trace and a later one name their functions otherwise."""
    elsewhere = tmp_path / "lib" / "site-packages"
    elsewhere.mkdir(parents=True)
    (elsewhere / "jax").symlink_to(Path(jax.__file__).parent)
    command = [sys.executable, "-c", TRACED]
    run = [
        subprocess.run([*command, kind], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)
        for kind, environment in (("cold", {}), ("warm", {"PYTHONPATH": str(elsewhere)}))
    ]
    (first, here), (second, there) = (done.stdout.split() for done in run)
    assert first == second and here != there, run[0].stderr + run[1].stderr
