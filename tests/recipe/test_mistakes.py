"""A mistake in a command line is one line and exit code 2, and nothing is made; `test_refusals.py` has the recipe's."""

import pytest

from tpullm.cli.main import main

PAGE = "docs/en/reference.md"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plan quickstart --serch", "the nearest is search, see tpullm plan --help"),
        ("plan quickstart --slices=some", "--slices: some is not a whole number; see tpullm plan --help"),
        ("plan licences quickstart", "the recipe is the first word after the verb: tpullm plan quickstart ..."),
        ("collect wrong.yaml --run RUN", "wrong.yaml: line 2: unknown key pretrain.stepz; the nearest is pretrain.st"),
        ("generate x --tokns 3", "unknown key --tokns; the nearest is --tokens, see tpullm generate --help"),
        ("generate x --tokens many", "--tokens: many is not a whole number; see tpullm generate --help"),
        ("generate x --tokens", "--tokens: its value is missing; see tpullm generate --help"),
        ("generate --model x", "--model: is no option; MODEL is the first word after the verb: tpullm generate MODEL"),
        ("tokenize --show a --model=x", "--model: is no option; MODEL is the first word after the verb: tpullm token"),
        ("evaluate x --tasks y --mesh 3", "--mesh: 3 is not pairs, such as {fsdp: 4, tensor: 2}"),
        ("blank", "missing: MODEL, TEXT; see tpullm blank --help"),
        ("export x", "missing: FOLDER; see tpullm export --help"),
        ("launch local --procesess 3 -- run quickstart", f"the nearest is processes, see {PAGE}#launch"),
        ("launch local --processes many -- run quickstart", f"many is not a whole number; see {PAGE}#launch"),
        ("launch lokal -- run quickstart", "target: lokal is none of local, slurm, gke, tpu-vm, batch"),
        ("launch local -- run quickstart --stepz 3", f"the nearest is pretrain.steps, see {PAGE}#pretrain"),
    ],
)
def test_a_wrong_command_line(capsys, tmp_path, monkeypatch, command, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("name: a\npretrain: {stepz: 1}")
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tpullm: ") and said in line
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]
