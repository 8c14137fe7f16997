"""`tpullm VERB --help`: short, quick, with examples that work and the keys that the verb reads."""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import shlex
import subprocess
import sys
from argparse import Namespace

import pytest

from tests.conftest import ROOT
from tpullm.cli import launch
from tpullm.cli.help import Option, Page, brief_help, cells
from tpullm.cli.main import main, parser_of
from tpullm.cli.verb_table import VERBS, module_of
from tpullm.recipe import parsing as recipes
from tpullm.recipe import schema, schema_keys
from tpullm.recipe.schema import Recipe
from tpullm.run import directory, stages
from tpullm.system.cluster import hosts, place

KNOWN = list(schema_keys.sections(Recipe))
# Keys of a source that verbs read of which `corpus.sources` is one key.
NAMES_OF_SOURCES = {f"corpus.sources.{name}" for name in ("name", "weight", "kind")}
EVERY_KEY = [section.dotted(key) for section in KNOWN for key in section.keys if key.kind != "stages"]


def printed(capsys, *arguments) -> list[str]:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("verb", [*VERBS, ""])
@pytest.mark.parametrize("columns", [20, 200])
def test_help_fits_a_terminal(capsys, monkeypatch, verb, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(capsys, *([verb] if verb else []), "--help")
    assert len(lines) <= 65
    assert max(map(cells, lines)) <= min(max(columns, 80), 100)


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_it_does_and_how(capsys, verb):
    lines = printed(capsys, verb, "--help")
    assert lines[0].startswith(f"usage: tpullm {verb}") and lines[2]
    module, names = importlib.import_module(module_of(verb)), ("add_arguments", "add_show_arguments")
    assert [name for name in names if hasattr(module, name)] == [VERBS[verb].adds] * bool(VERBS[verb].adds)
    start = lines.index("Examples:") + 1
    assert lines[start : start + 3] == [f"  tpullm {verb} {each}".rstrip() for each in VERBS[verb].examples] + [""]
    assert printed(capsys, verb, "-h") == printed(capsys, "help", verb) == lines


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_parse(verb, tmp_path, monkeypatch):
    assert len(VERBS[verb].examples) == 2
    monkeypatch.chdir(tmp_path)
    for run in ("runs/quickstart", "runs/mine", "runs/q"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").write_text(f"name: {run}")
    for example in VERBS[verb].examples:
        words = [word for word in shlex.split(example.partition(" > ")[0]) if word != "--config=mine.yaml"]
        shows = VERBS[verb].shows in words if VERBS[verb].shows else False
        if verb == "launch":
            words, command = words[: words.index("--")], words[words.index("--") + 1 :]
            recipes.settings_of(launch._launch_parser(), words, launch.LaunchConfig)
            recipes.of_command_line(command[1:])
        elif VERBS[verb].recipe and not shows:
            named = words[1] if words[0] == "--run" else words[0]
            assert recipes.recipe_of(parser_of(verb), words)[0].name == named
        else:
            recipes.parse(parser_of(verb, shows), words)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb].recipe])
def test_it_names_every_key_that_it_should(capsys, verb):
    """In all its forms: a key is in a list, in a row, or in a section of which the number of keys is told."""
    text = "\n".join(printed(capsys, verb, "--help"))
    for section in schema_keys.chosen(KNOWN, VERBS[verb].keys):
        title = f"{section.name}, a list" if section.repeated else f"--{section.name}.KEY: "
        assert not section.name or title in text or f"{section.name}: a list (" in text
    everything = printed(capsys, verb, "--help-all")
    names = {line.split()[0].removeprefix("--") for line in everything if line.startswith("  ")}
    assert {key.rpartition(".")[2] for key in EVERY_KEY} <= names
    whole = " ".join(" ".join(everything).split())
    assert (place.HELP in whole) == VERBS[verb].computes


def test_all_of_the_help_has_whole_explanations_and_choices(capsys):
    lines = printed(capsys, "pretrain", "--help-all")
    assert "  --seed 0                    the seed of everything random." in lines
    assert "  layers 4                    number of Transformer blocks (L)." in lines
    assert "--finetune.NAME.train.KEY: the keys of pretrain" in lines
    assert "--finetune.NAME.train.optimizer" not in str(lines)
    whole = " ".join(" ".join(lines).split())
    assert "`sigmoid` is DeepSeek-V3's. One of softmax, sigmoid." in whole
    assert "`rms`, or `layer` with a bias (GPT-2). norm_epsilon" in whole, "which names its choices itself"
    (line,) = [line for line in printed(capsys, "chat", "--help") if "--seed" in line]
    assert line.endswith("(default 0)")


def test_help_is_quick_and_without_jax():
    program = (
        "import sys; from tpullm.cli.main import main\n"
        "for verb in ('pretrain', 'generate', 'tokenize'): main([verb, '--help'])\n"
        "sys.exit('jax' in sys.modules)"
    )
    before = sum(os.times()[2:4])
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    assert sum(os.times()[2:4]) - before < 1.5, "of the processor's time: a machine may be busy"


def test_the_help_of_a_verb_behind_a_launch(capsys):
    assert printed(capsys, "launch", "local", "--", "run", "--help") == printed(capsys, "run", "--help")
    assert printed(capsys, "launch", "local", "--help", "--", "run") == printed(capsys, "launch", "--help")
    assert any("--dry-run" in line for line in printed(capsys, "launch", "--help"))


def test_what_does_not_fit_is_shortened_from_the_end():
    keys = tuple(schema_keys.Key(f"key{n}", "0", int, f"explanation {n}. And more.") for n in range(20))
    parts = [schema_keys.Section(name, "title", keys) for name in ("", "first", "second", "second.inner")]
    page = Page("tpullm it", "It does.", ["tpullm it"], [Option("--all", "all")], "Keys:", parts)
    shown = brief_help(page, 80).split("\n")
    assert len(shown) <= 60
    assert "  --key19 0                   explanation 19" in shown, "the first section is whole"
    assert "  key19 0                     explanation 19" in shown
    assert "--second.inner.KEY: title (20 keys)" in shown
    assert "  key19 0" not in shown and shown[-2].endswith("key19 0")
    alone = brief_help(Page("tpullm it", "It does.", [], (), "", parts[:1]), 80)
    assert "explanation 3\n" in alone and "And more" not in alone


@pytest.fixture
def reads(monkeypatch):
    """A function that runs something and gives the keys of a recipe that it reads.

    What only asks whether an earlier stage still stands does not count, nor does a whole recipe that is written down.
    """
    found, names, at = set(), {}, {"on": False}

    @contextlib.contextmanager
    def switched(on):
        was, at["on"] = at["on"], on
        try:
            yield
        finally:
            at["on"] = was

    def watch(kind):
        fields, plain = {field.name for field in dataclasses.fields(kind)}, kind.__getattribute__

        def get(self, name):
            if at["on"] and name in fields and id(self) in names:
                found.add(f"{names[id(self)]}{name}")
            return plain(self, name)

        monkeypatch.setattr(kind, "__getattribute__", get)

    def name_all(one, prefix=""):
        names[id(one)] = prefix
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            named = isinstance(value, dict)
            for each in value.values() if named else value if isinstance(value, list) else [value]:
                if dataclasses.is_dataclass(each):
                    name_all(each, f"{prefix}{field.name}.{'NAME.' * named}")

    def run(recipe, work):
        found.clear(), names.clear()
        name_all(recipe)
        with switched(True):
            work()
        return {key for key in found if key in EVERY_KEY}

    def of_a_recipe(whole):
        return lambda one, **changes: (switched(False)(whole) if isinstance(one, Recipe) else whole)(one, **changes)

    for kind in (value for value in vars(schema).values() if dataclasses.is_dataclass(value)):
        watch(kind)
    for name in ("asdict", "replace"):
        monkeypatch.setattr(dataclasses, name, of_a_recipe(getattr(dataclasses, name)))
    monkeypatch.setattr(stages, "standing", switched(False)(stages.standing))
    monkeypatch.setattr(hosts, "agree", lambda *_: None)
    return run


@pytest.fixture
def small(tmp_path):
    """A recipe whose stages take seconds, of two sources, with conversations and every section set."""
    folder = tmp_path
    for name in ("a", "b"):
        (folder / name).mkdir()
        for n in range(100):
            (folder / name / f"{n}.txt").write_text(f"{name} {n}: the sun rises and the moon sets, {n * 7} times.")
    asked, said = ([{"role": role, "content": f"{n}?"} for n in range(60)] for role in ("user", "assistant"))
    lines = [json.dumps({"messages": turns}) for turns in zip(asked, said, strict=True)]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    source = "{{name: {0}, kind: text, path: {1}/{0}, licence: CC0-1.0, filter: false}}"
    sources = ", ".join(source.format(name, folder) for name in "ab")
    sizes = "{layers: 1, width: 16, heads: 1, context_length: 64}"
    train = "{steps: 1, batch_size: 4, sequence_length: 64, compute: float32, evaluate_rows: 1}"
    path = folder / "small.yaml"
    path.write_text(
        f"name: small\nrun: {folder}/run\ntopology: v5e:2x2\ncorpus: {{sources: [{sources}], held_out_fraction: 0.2}}\n"
        f"tokenizer: {{model_type: char, vocabulary_size: 0}}\nmodel: {sizes}\npretrain: {train}\n"
        f"finetune: {{talk: {{conversations: [{folder}/chats.jsonl], train: {train}}}}}\n"
        "evaluate: {rows: 1, questions: 1, prompts: [The], sample_tokens: 2, attention: The sun}\n"
    )
    return path


def read_and_declared(verb, reads, small) -> tuple[set, set]:
    """The keys that a verb reads in the run of the small recipe, and those that it declares, without name and run."""
    recipe, run, added = recipes.load(small), small.parent / "run", []
    if verb in ("sharding", "plan"):  # before there are tokens
        recipe, run = recipes.load(small, ["--tokenizer.vocabulary_size=400"]), run / "planned"
    if VERBS[verb].adds and not VERBS[verb].shows:
        options = parser_of(verb).parse_args(["--step=0"] if verb == "data" else [])
        added = [Namespace(**{key: value for key, value in vars(options).items() if not hasattr(recipe, key)})]
    module = importlib.import_module(module_of(verb))
    with directory.owned(small.parent / "run", recipe), contextlib.redirect_stdout(None):
        found = reads(recipe, functools.partial(module.main, recipe, run, *added))
        if verb == "plan":  # of pretraining, and of a stage of tuning
            added[0].stage = "talk"
            found |= reads(recipe, functools.partial(module.main, recipe, run, *added))
    return found - {"name", "run"}, set(VERBS[verb].keys) - {"name", "run"}


def in_one(key, names) -> set[str]:
    return {name for name in names if f"{key}.".startswith(f"{name}.")}


# What the run of the small recipe does not need: it has no questions of tenki, no text of one's own, and no branch.
OF_TENKI_OR_TEXT = ("finetune.NAME.held_out_fraction", "pretrain.steps", "pretrain.batch_size", "mixture")


@pytest.mark.parametrize(
    "verbs",
    [
        ("collect", "tokenize", "data"),
        ("sharding", "plan"),
        pytest.param(("collect", "tokenize", "pretrain", "finetune", "evaluate", "report"), marks=pytest.mark.slow),
    ],
    ids=["text", "planned", "training"],
)
def test_the_keys_that_a_verb_reads_are_those_that_it_declares(reads, small, verbs):
    """A declared section counts if one of its keys is read; `corpus.sources` is one key where names are enough."""
    for verb in verbs:
        found, declared = read_and_declared(verb, reads, small)
        assert {key for key in found if not in_one(key, declared)} <= NAMES_OF_SOURCES, verb
        elsewhere = {"text_bytes", "branch_state", *(OF_TENKI_OR_TEXT if verb == "evaluate" else ())}
        assert set().union(*(in_one(key, declared) for key in found)) >= declared - elsewhere, verb
