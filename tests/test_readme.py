"""Every command in the README works: `tpullm` ones run here on the tiny run, `make` ones in `.ci/run`."""

import json
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
        *("blank", "attention", "generate", "chat", "data", "doctor", "import", "export", "run", "sharding", "plan"),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("models") / "published")


@pytest.fixture(scope="module")
def yours(tmp_path_factory):
    """What the reader has: documents, conversations, and a place for runs and models."""
    folder = tmp_path_factory.mktemp("yours")
    (folder / "my_texts").mkdir()
    for number in range(30):
        text = f"今日は{number}日です。猫が好きです。犬も好きです。" * 5
        (folder / "my_texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    turns = [{"role": "user", "content": "元気？"}, {"role": "assistant", "content": "はい。"}]
    lines = [json.dumps({"messages": [{**turns[0], "content": f"元気{n}？"}, turns[1]]}) for n in range(150)]
    (folder / "my_conversations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("tpullm")])
def test_a_tpullm_command(tiny_run, published, yours, command):
    """In the order of the README: what one makes, a later one reads."""
    places = {"configs/quickstart.yaml": TINY, "runs/quickstart": tiny_run, "models/published": published}
    places |= {
        name: yours / name
        for name in ("runs/mine", "models/mine", "models/quickstart", "my_texts", "my_conversations.jsonl")
    }
    arguments = shlex.split(command)[1:]
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    if "--config" in arguments and arguments[0] != "plan":  # which needs no run
        arguments += ["--run", str(tiny_run)]
    if "runs/mine" in command and arguments[0] in ("finetune", "run"):
        arguments += ["--finetune.train.steps=2", "--pretrain.steps=2"]
    done = tpullm(*arguments)
    assert done.stdout or done.stderr or (tiny_run / "attention.html").exists()


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
