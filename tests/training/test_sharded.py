"""Sharded = single device: the mesh changes where arrays live and not one number."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.training.small import SPREAD
from tpullm.config import TrainConfig
from tpullm.errors import UserError
from tpullm.sharding import RULES, make_mesh, planned_mesh
from tpullm.training.state import Architecture, check_fits


@pytest.mark.parametrize(
    ("model", "meshes", "programs"),
    [
        ("dense", ["one device", "data 2, fsdp 2, tensor 2"], 2),
        ("experts", ["one device", "data 2, fsdp 2, tensor 2"], 2),
        ("spread", ["one device", "expert 2, sequence 2, tensor 2"], 2),
        pytest.param("dense", [], 5, marks=pytest.mark.slow),
        pytest.param("experts", [], 5, marks=pytest.mark.slow),
        pytest.param("spread", [], 4, marks=pytest.mark.slow),
    ],
)
def test_losses_on_a_mesh_are_those_of_one_device(model, meshes, programs):
    """Float32 sums in another order over 3 steps of AdamW: 1e-5 relative is some hundred roundings.

    So are the loads of experts, the loss that keeps them even, and the biases that do.
    """
    command = [sys.executable, "-m", "tests.training.sharded_losses", model, *meshes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    one = results.pop("one device")
    assert len(results) == programs
    for name, losses in results.items():
        np.testing.assert_allclose(losses, one, rtol=1e-5, err_msg=name)


SOME = ["one device", "data 2, fsdp 2, tensor 2"]


@pytest.mark.parametrize(
    ("model", "optimizer", "meshes"),
    [
        pytest.param("experts", "muon", SOME, id="experts, muon"),
        pytest.param("dense", "adafactor", SOME, id="dense, adafactor"),
        *(
            pytest.param(model, optimizer, [], marks=pytest.mark.slow, id=f"{model}, {optimizer}, all meshes")
            for model in ("dense", "experts")
            for optimizer in ("adamw bfloat16", "adafactor", "muon", "muon bfloat16")
        ),
    ],
)
def test_every_optimizer_gives_the_losses_of_one_device(model, optimizer, meshes):
    """As above, over 5 steps. Moments in bfloat16: a sum in another order may be rounded to the other neighbour, 2^-8
    away; the gradient's norm then moved by 2e-5, and 1e-4 is 5 times that.
    """
    command = [sys.executable, "-m", "tests.training.sharded_optimizers", model, optimizer, *meshes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    one = results.pop("one device")
    assert len(results) == (len(meshes) or 5) - 1
    for name, losses in results.items():
        np.testing.assert_allclose(losses, one, rtol=1e-4 if "bfloat16" in optimizer else 1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [{"fsdp": 3, "tensor": 5}, {"fsdp": -1, "tensor": -1}, {"fsdp": 0}, {"tensor": 2}])
def test_a_mesh_that_does_not_fit_the_devices_is_one_clear_line(shape):
    with pytest.raises(UserError, match="mesh: .* does not fit 1 device"):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("experts", "expert", "message"),
    [
        (6, 4, "6 experts can't be shared by 4 devices; use model.experts 4 or 8, or mesh.expert 3 or 6"),
        (5, 8, "5 experts can't be shared by 8 devices; use model.experts 8, or mesh.expert 5"),
    ],
)
def test_experts_that_the_mesh_cannot_share_are_one_line_with_numbers_that_can(experts, expert, message):
    architecture = Architecture(dataclasses.replace(SPREAD.config, experts=experts))
    with pytest.raises(UserError) as error:
        check_fits(
            architecture, TrainConfig(batch_size=8, sequence_length=32), 96, planned_mesh({"expert": expert}, expert)
        )
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_axis_is_named():
    with pytest.raises(UserError, match="tensr is not an axis"):
        make_mesh({"tensr": 2})


def test_no_two_dimensions_share_a_mesh_axis():
    with pytest.raises(AssertionError, match="twice"):
        RULES.spec("heads", "mlp")
