"""A wrong key, or a wrong value of one, is one line: what, the nearest key, and where it is explained."""

import re

import pytest

from tests.conftest import ROOT, TINY
from tpullm.cli.main import main
from tpullm.recipe import mistakes, parsing, schema_keys
from tpullm.recipe.schema import Recipe

PAGE = "docs/en/reference.md"


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("tpullm: ")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--pretrain.stepz=1", f"unknown key pretrain.stepz; the nearest is pretrain.steps, see {PAGE}#pretrain"),
        ("--model.widht=1", f"unknown key model.widht; the nearest is model.width, see {PAGE}#model"),
        ("--steps=3", f"unknown key steps; the nearest is pretrain.steps, see {PAGE}#pretrain"),
        (
            "--finetune.steps=3",
            f"unknown key finetune.steps; the nearest is finetune.NAME.train.steps, see {PAGE}#train",
        ),
        ("--pretrain.step=3", "the nearest is pretrain.steps"),
        ("--pretrain.peak_lr=3", f"the nearest is pretrain.optimizer.peak_lr, see {PAGE}#optimizer"),
        ("--lr=3", "the nearest is pretrain.optimizer.peak_lr"),
        ("--finetune.talk.train.lr=3", "the nearest is finetune.talk.train.optimizer.peak_lr"),
        ("--sed=3", f"the nearest is seed, see {PAGE}#recipe"),
        ("--serch", "the nearest is search, see tpullm plan --help"),
        ("--zzzzzz=3", f"unknown key zzzzzz; {PAGE} has all keys"),
        ("--pretrain.steps=many", f"pretrain.steps: many is not a whole number; see {PAGE}#pretrain"),
        ("--pretrain.optimizer.peak_lr=fast", f"peak_lr: fast is not a number; see {PAGE}#optimizer"),
        ("--model.gated=maybe", f"model.gated: maybe is not true or false; see {PAGE}#model"),
        ("--model.norm=bath", f"model.norm: bath is not one of rms, layer; see {PAGE}#model"),
        ("--model.windows=3", "model.windows: 3 is not a list, such as [a, b]; see"),
        ("--model.windows=[a]", "model.windows: a is not a whole number; see"),
        ("--evaluate.prompts=[1]", "evaluate.prompts: 1 is not a text; see"),
        (
            "--finetune.talk.train.steps=many",
            f"finetune.talk.train.steps: many is not a whole number; see {PAGE}#train",
        ),
        ("--corpus.sources=here", "corpus.sources: here is not a list, such as '[{name: mine, kind: text"),
        ("--corpus.sources.name=here", "--corpus.sources.name: give --corpus.sources as a whole: a list, such as"),
        ("--pretrain=3", f"pretrain: has keys of its own; give --pretrain.KEY, see {PAGE}#pretrain"),
        ("--slices=some", "--slices: some is not a whole number; see tpullm plan --help"),
        ("--seed", "--seed: its value is missing; give a whole number"),
        ("words", "words: a word too many; an option begins with --, see tpullm plan --help"),
        ("quickstart", "quickstart: the recipe is the first word after the verb: tpullm plan quickstart ..."),
        ("-x", "-x: no such option; see tpullm plan --help"),
    ],
)
def test_on_the_command_line(capsys, option, said):
    assert said in refused(capsys, "plan", "quickstart", option)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: a\npretrain: {stepz: 1}",
            f"line 2: unknown key pretrain.stepz; the nearest is pretrain.steps, see {PAGE}",
        ),
        ("model: {widht: 3}", "line 1: unknown key model.widht; the nearest is model.width"),
        ("steps: 3", f"line 1: unknown key steps; the nearest is pretrain.steps, see {PAGE}#pretrain"),
        ("train: {steps: 3}", f"line 1: unknown key train; the nearest is pretrain, see {PAGE}#pretrain"),
        (
            "finetune: {talk: {train: {optimizer: {momentun: 3}}}}",
            "the nearest is finetune.talk.train.optimizer.momentum, see",
        ),
        (
            "corpus: {sources: [{name: a, kind: text, pth: b}]}",
            f"the nearest is corpus.sources.path, see {PAGE}#sources",
        ),
        ("corpus: {sources: [{kind: text}]}", f"corpus.sources: name is missing; see {PAGE}#sources"),
        ("pretrain: {steps: many}", f"wrong.yaml: pretrain.steps: many is not a whole number; see {PAGE}#pretrain"),
        (
            "finetune: {talk: {train: {steps: many}}}",
            "wrong.yaml: finetune.talk.train.steps: many is not a whole number; see",
        ),
        ("name: a\npretrain: 3", "line 2: pretrain: has keys of its own; write KEY: VALUE lines, see"),
        ("pretrain: {<<: {stepz: 1}}", "unknown key pretrain.stepz"),
        ("pretrain:", "line 1: pretrain: has keys of its own"),
        ("- a", "line 1: no key is here; write KEY: VALUE lines, see"),
        ("hello", "line 1: no key is here"),
        ("", "wrong.yaml: is empty"),
        ("pretrain: [", "wrong.yaml: not YAML"),
    ],
)
def test_in_a_file(capsys, tmp_path, text, said):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    line = refused(capsys, "collect", path, "--run", tmp_path / "run")
    assert line.startswith(f"{path}: ") and said in line


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("generate --modl x", "unknown key --modl; the nearest is --model, see tpullm generate --help"),
        ("generate --model x --tokens many", "--tokens: many is not a whole number; see tpullm generate --help"),
        ("blank", "missing: TEXT, --model; see tpullm blank --help"),
        ("export x", "missing: FOLDER; see tpullm export --help"),
        ("tokenize --show", "--show: its value is missing"),
        ("launch local --procesess 3 -- run quickstart", f"the nearest is processes, see {PAGE}#launch"),
        (
            "launch local --processes many -- run quickstart",
            f"processes: many is not a whole number; see {PAGE}#launch",
        ),
        ("launch lokal -- run quickstart", "target: lokal is none of local, slurm, tpu-vm, compute, batch"),
        ("launch local -- run quickstart --stepz 3", f"the nearest is pretrain.steps, see {PAGE}#pretrain"),
    ],
)
def test_of_other_verbs(capsys, command, said):
    assert said in refused(capsys, *command.split())


def test_what_is_right_is_let_through(tmp_path):
    options = ["--mesh.fsdp=2", "--finetune.talk.train.steps=3", "--model.windows=[0, 8]", "--model.layers=2"]
    one = parsing.of_command_line([str(TINY), *options])
    assert (one.mesh["fsdp"], one.finetune["talk"].train.steps, one.model.windows) == (2, 3, (0, 8))
    path = tmp_path / "merged.yaml"
    path.write_text("pretrain: &train {steps: 3}\nfinetune: {talk: {train: {<<: *train, batch_size: 4}}}\n")
    assert parsing.load(path).finetune["talk"].train.steps == 3


def test_every_key_has_a_section_of_the_page():
    """Its anchors are the last part of a section's name; what other programs call a key leads to one."""
    parser = __import__("jsonargparse").ArgumentParser(prog="tpullm run")
    parsing.add_recipe_arguments(parser)
    keys = mistakes.Keys(parser, Recipe)
    places = {keys.where(section.dotted(key)) for section in schema_keys.sections(Recipe) for key in section.keys}
    assert set(mistakes.ELSEWHERE.values()) <= set(keys.known)
    headings = re.findall(r"^##+ (\w+)$", (ROOT / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    assert {place.partition("#")[2] for place in places} <= set(headings)
