"""A recipe by name or path, as the first word after a verb."""

import dataclasses
import shlex
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.conftest import ROOT
from tpullm.cli.main import main
from tpullm.recipe import parsing, shipped
from tpullm.system.errors import UserError


def test_every_shipped_recipe_has_a_name():
    files = set((ROOT / "configs").rglob("*.yaml")) - set((ROOT / "configs" / "launch").iterdir())
    assert {path.resolve() for path in shipped.recipes().values()} == files


@pytest.mark.parametrize("name", shipped.recipes())
def test_the_head_of_a_recipe_says_what_to_expect(name):
    """Its command is one that loads, with something in place of what the reader fills in."""
    path = shipped.recipes()[name]
    head = shipped.head(path)
    assert set(head) == {"title", "command", "hardware", "time", "result"} and all(head.values())
    assert head["hardware"].split()[0].replace(",", "").isdigit()
    program, verb, *arguments = shlex.split(head["command"].replace("\\ ", ""))
    assert (program, verb, arguments[0]) == ("tpullm", "run", name)
    assert parsing.of_command_line(arguments).name == name
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert sum(map(len, head.values())) > 0.75 * sum(map(len, comments)), "nothing in it was skipped"


def test_a_name_is_the_shipped_recipe_whatever_lies_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "mine", "mine.yaml"):
        Path(name).write_text("name: mine\n")
    assert parsing.of_command_line(["quickstart"]).name == "quickstart"
    for path in ("./quickstart", "mine", "mine.yaml", str(tmp_path / "mine.yaml")):
        assert parsing.of_command_line([path]).name == "mine"
    Path("8b").mkdir()
    assert parsing.of_command_line(["8b"]).name == "8b"


def test_a_key_of_one_source_is_set_by_its_name():
    before = parsing.of_command_line(["law-ja"])
    changed = parsing.of_command_line(["law-ja", "--corpus.sources.law.path", "[a]", "--corpus.sources.tenki.weight=2"])
    law, tenki = before.corpus.sources
    assert (law.path, tenki.weight) == ("my_laws", 1.0)
    expected = [dataclasses.replace(law, path="[a]"), dataclasses.replace(tenki, weight=2.0)]
    assert changed == dataclasses.replace(before, corpus=dataclasses.replace(before.corpus, sources=expected))
    assert [source.path for source in changed.laws] == ["[a]"] and changed.laws == expected[:1]
    with pytest.raises(
        UserError, match="^corpus.sources.weight: -x is not a number"
    ):  # the line of a file has another value
        parsing.of_command_line(["law-ja", "--corpus.sources.tenki.weight=-x"])


def test_a_name_may_follow_config_as_a_path_may():
    named = parsing.of_command_line(["quickstart", "--pretrain.steps=7"])
    assert named.pretrain.steps == 7
    for argv in (["--config", "quickstart"], ["--config=quickstart"], [str(ROOT / "configs" / "quickstart.yaml")]):
        assert parsing.of_command_line([*argv, "--pretrain.steps=7"]) == named


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("quickstrat", "quickstrat: no such recipe; the nearest name is quickstart (`tpullm recipes` lists all names)"),
        (
            "configs/quikstart.yaml",
            "configs/quikstart.yaml: no such file or run directory; the nearest name is quickstart",
        ),
        ("quikstart.yaml", "quikstart.yaml: no such file or run directory; the nearest name is quickstart"),
        ("runs/nothing", "runs/nothing: no such file or run directory; `tpullm recipes` lists all names"),
        ("my/quikstart", "my/quikstart: no such file or run directory; the nearest name is quickstart"),
        ("zzz", "zzz: no such recipe; `tpullm recipes` lists all names"),
        ("configs", "configs: is a folder; give a YAML file"),
    ],
)
def test_a_word_that_is_neither(word, said):
    for argv in ([word], ["--config", word], [f"--config={word}"]):
        with pytest.raises(UserError) as error:
            parsing.of_command_line(argv)
        assert str(error.value).startswith(said)


def test_a_run_directory_stands_for_its_recipe_and_itself(tmp_path, monkeypatch):
    """Also one that was moved; a name that comes with tpullm is that recipe, whatever lies here."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "quickstart"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("name: a\nrun: runs/before\nseed: 7\n")
    found = parsing.of_command_line(["mine", "--pretrain.steps", "9"])
    assert (found.name, found.run, found.seed, found.pretrain.steps) == ("a", "mine", 7, 9)
    assert parsing.of_command_line(["quickstart"]).name == "quickstart"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: is a folder; give a YAML file"):
        parsing.of_command_line(["empty"])


@pytest.mark.parametrize(
    ("words", "run"),
    [
        ("--text my_texts", "runs/my_texts"),
        ("--text ../a.b/夏目 漱石.v2.txt", "runs/夏目-漱石-v2"),
        ("--text=gs://bucket/texts/", "runs/texts"),
        ("--text . ", "runs/here"),
        ("--text /", "runs/text"),
        ("--text quickstart.txt", "runs/quickstart-text"),
        ("--text my_texts --run runs/mine", "runs/mine"),
        ("--text_bytes 9", "runs/quickstart"),
    ],
)
def test_a_text_has_a_run_of_its_own_name(tmp_path, monkeypatch, words, run):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = words.replace("夏目 ", "夏目\\ ")
    assert parsing.of_command_line(["quickstart", *shlex.split(words)]).run == run


def test_a_run_keeps_its_directory_whatever_its_text_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("name: a\nrun: runs/before\ntext: first\n")
    for words in (["mine", "--text", "other"], ["--run", "mine", "--text", "other"]):
        assert parsing.of_command_line(words).run == "mine"


def test_a_recipe_in_place_of_a_verb(capsys):
    assert main(["quickstart"]) == 2
    assert "tpullm run quickstart" in capsys.readouterr().err


def test_it_may_stand_in_a_launch(capsys):
    """The processes here get the same words, and a machine gets the whole recipe."""

    def shown(command, *more):
        code = main(["launch", *command.split(), *more])
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    printed = shown("local --config local --dry-run -- pretrain quickstart")
    assert "-m tpullm pretrain quickstart --hosts.index=1" in printed
    command = "tpu-vm --config tpu-vm --project p --dry-run -- run 125m --run gs://b/r"
    sources = "[{name: a, kind: text, path: gs://b/a, licence: CC0-1.0}]"
    assert "width: 768" in shown(command, "--corpus.sources", sources)
    missing = shown("local --config lokal -- run quickstart")
    assert "lokal: no such launch settings; the nearest name is local (the names are batch, gke" in missing


def test_the_list(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    letters = "".join(listed.split())  # a line may end within a Japanese word
    for name, path in shipped.recipes().items():
        head = shipped.head(path)
        assert f"\n{name} " in f"\n{listed}"
        assert "".join(f"{head['hardware']}, {head['time']} {head['result']}".split()) in letters
    assert all(cell_len(line) <= 80 for line in listed.splitlines())
    assert listed.index("\nnovels ") < listed.index("\n125m ") < listed.index("\n8b ") < listed.index("\n1t ")
    assert main(["recipes", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
