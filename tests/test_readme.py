"""Every command in the README works: `tpullm` ones run here on the tiny run, `make` ones in `.ci/run`."""

import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT, TINY, tpullm
from tests.huggingface.published import directory

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line]
VERBS = sorted({shlex.split(command)[1] for command in COMMANDS if command.startswith("tpullm")})


def test_the_readme_shows_every_way_to_use_it():
    assert {"make quickstart", "make test"} <= set(COMMANDS)
    assert set(VERBS) == {
        *("collect", "tokenize", "pretrain", "finetune", "evaluate", "report"),
        *("blank", "attention", "generate", "chat", "data", "doctor"),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("models") / "published")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("tpullm")])
def test_a_tpullm_command(tiny_run, published, command):
    arguments = [
        argument.replace("configs/quickstart.yaml", str(TINY))
        .replace("runs/quickstart", str(tiny_run))
        .replace("models/published", str(published))
        for argument in shlex.split(command)[1:]
    ]
    if "--config" in arguments:
        arguments += ["--run", str(tiny_run)]
    done = tpullm(*arguments)
    assert done.stdout or "skipped" in done.stderr or (tiny_run / "attention.html").exists()


def test_the_lines_for_a_notebook(published, capsys):
    (lines,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    made = {}
    exec(lines.replace("models/published", str(published)), made)
    assert made["logits"].shape == (1, len(made["ids"]), made["model"].config.vocabulary_size)
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("tpullm")])
def test_a_make_command_names_a_target(command):
    program, *arguments = shlex.split(command)
    assert program == "make"
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipes_it_names_exist():
    for name in re.findall(r"`(configs/[\w./]+\.yaml)`", TEXT):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+\.yaml)`", TEXT):
        assert (ROOT / "configs" / "pretrain" / name).exists(), name
