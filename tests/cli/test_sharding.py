"""The table of layouts says what arrays on such a mesh really are, without the devices."""

import json

import pytest

from tests.conftest import ROOT
from tests.eight_devices import printed
from tpullm.cli import main

QUICKSTART = f"--config={ROOT}/configs/quickstart.yaml"


def table(capsys, tmp_path, mesh, *options):
    arguments = ("sharding", QUICKSTART, f"--run={tmp_path / 'none'}", f"--mesh={json.dumps(mesh)}", "--json", *options)
    assert main.main(list(arguments)) == 0
    assert not (tmp_path / "none").exists()
    return json.loads(capsys.readouterr().out)


def test_the_layouts_are_those_of_real_arrays(capsys, tmp_path):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    found = table(capsys, tmp_path, mesh)
    placed = printed("tests.cli.sharded_layouts", QUICKSTART.removeprefix("--config="), json.dumps(mesh))
    assert {row["parameter"]: row["shape_a_device"] for row in found["table"]} == placed


def test_one_device_holds_everything_and_many_share_it(capsys, tmp_path):
    whole = table(capsys, tmp_path, {"fsdp": 1})
    assert whole["devices"] == 1 and whole["bytes_a_device"] == 4 * whole["parameters"]
    shared = table(capsys, tmp_path, {"fsdp": -1}, "--devices=16")
    # All but the norms are split.
    assert shared["devices"] == 16 and shared["bytes_a_device"] < 1.02 * whole["bytes_a_device"] / 16


@pytest.mark.parametrize(
    ("kind", "moments", "least", "most"),
    [
        ("adamw", "float32", 16, 16),
        ("adafactor", "float32", 8, 8.1),
        ("muon", "bfloat16", 10, 11),  # a quarter of the quickstart's parameters is its table of tokens
    ],
)
def test_the_bytes_of_a_training_are_those_of_its_optimizer(kind, moments, least, most, capsys, tmp_path):
    """For each parameter: itself, its gradient, and what is kept; and a kilobyte that judges and counts the steps."""
    options = (f"--pretrain.optimizer.kind={kind}", f"--pretrain.optimizer.moments={moments}")
    found = table(capsys, tmp_path, {"fsdp": 1}, *options)
    assert found["optimizer"] == kind
    assert least <= found["training_bytes_a_device"] / found["parameters"] <= most + 1e-3
    # Norms of queries and keys, and adafactor's numbers of a column, are not split.
    shared = table(capsys, tmp_path, {"fsdp": 8}, *options)
    assert shared["training_bytes_a_device"] < 1.05 * found["training_bytes_a_device"] / 8


def test_it_is_a_table_for_people(capsys, tmp_path):
    assert main.main(["sharding", QUICKSTART, f"--run={tmp_path / 'none'}", "--mesh={fsdp: 4, tensor: 2}"]) == 0
    out = capsys.readouterr().out
    assert "1,115,520 parameters on 8 device(s): fsdp 4, tensor 2" in out
    line = next(line for line in out.splitlines() if "layers.mlp.gate.weight" in line)
    assert "4 × 128 × 384" in line and "embed: fsdp, mlp: tensor" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mesh={fsdp: 3}",), "pretrain.batch_size: 32 rows (batch_size / accumulation) can't be shared by 3 dev"),
        (("--mesh={fsdp: 4}", "--devices=6"), "does not fit 6 device(s)"),
        (("--devices=-1",), "--devices: -1 is below 0"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(options, message, capsys, tmp_path):
    assert main.main(["sharding", QUICKSTART, f"--run={tmp_path / 'none'}", *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
