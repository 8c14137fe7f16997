"""What the documentation says is so: its commands run, its recipes load, its links lead somewhere.

Every command of every page is parsed by its verb's own parser, which refuses unknown options, keys and values. CI also
runs each command once, on the tiny run, in a folder like the reader's. `make` commands are run by `.ci/run`. What
needs the network is checked as far as possible.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import TINY
from tests.corpus.made_up_law import LAW
from tests.evaluation import problems
from tests.formats.huggingface.published import change, directory
from tests.pages import PAGES, ROOT, anchors, blocks, commands, links, name_of
from tests.serving.conftest import get, serve_until, serving
from tpullm.cli import launch, main
from tpullm.cli.serve import KEY
from tpullm.corpus import document_files
from tpullm.corpus.tenki.question_set import split_questions
from tpullm.evaluation import harness_tasks, problem_files
from tpullm.launch.job import LaunchConfig
from tpullm.recipe import parsing
from tpullm.recipe.parsing import parse
from tpullm.report.watching import Pages
from tpullm.run import directory as lock
from tpullm.system import log, storage
from tpullm.system.cluster import place
from tpullm.system.errors import UserError
from tpullm.tokenizer.chat_template import ChatTemplate

COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
# What a reader has made before: the path, and the command that makes it, which runs first if it did not yet.
MADE_BY = {
    "runs/mine": "tpullm import models/published --run runs/mine",
    "runs/small": "tpullm import models/published --run runs/small",
    "runs/student": "tpullm import models/published --run runs/student",
    "runs/small/talk": (
        "tpullm finetune --run runs/small --finetune.talk.conversations '[my_conversations.jsonl]' "
        "--finetune.talk.adapter.rank 8"
    ),
    "models/my_adapter": "tpullm export runs/small/talk models/my_adapter",
    "runs/my-text": "tpullm run my_recipe.yaml",
    "runs/real": "tpullm run real",
    "models/mine_gguf": "tpullm export runs/mine models/mine_gguf --format gguf --weights q8_0",
    "models/quickstart": "tpullm export runs/quickstart models/quickstart --licence Apache-2.0",
}
# These say how much is done, and nothing else: the reader has hours, and more text than 30 short files.
SMALL = ["--model.layers=1", "--model.width=32", "--model.heads=2"]
SHORT = ["--pretrain.steps=2", "--pretrain.batch_size=2", "--pretrain.sequence_length=64"]
SHORT += ["--evaluate.sample_tokens=2", "--evaluate.rows=8", "--evaluate.questions=4"]
TUNED = [f"--finetune.talk.train.{how_much}" for how_much in ("steps=2", "batch_size=2", "sequence_length=64")]
LAWS = [f"--finetune.{stage}.train.{key}" for stage in ("field", "questions") for key in ("steps=2", "batch_size=2")]
LAWS += ["--corpus.sources.tenki.documents=300"]
# The model is one that is there, and too small to be asked much; `tests/cli/test_run_real.py` has the whole recipe.
REAL = [f"--finetune.docstrings.train.{key}" for key in ("steps=2", "batch_size=2", "measure.prompts=[]")]
REAL += ["--finetune.docstrings.train.measure.tasks=[]", "--base=models/long", "--evaluate.questions=4"]


class Reader:
    """Somebody who types commands in a folder, and whose `bucket()` makes `gs://my-bucket/quickstart`."""

    def __init__(self, folder, bucket):
        self._folder, self._bucket, self._typed = folder, bucket, {}

    def types(self, command: str) -> str:
        """What a `tpullm` command prints; it runs once."""
        for path, maker in MADE_BY.items():
            if path in command and command != maker:
                assert maker in COMMANDS, f"no page shows the command that makes {path}: {maker}"
                self.types(maker)
        if command not in self._typed:
            self._typed[command] = self._run(_as_run_here(command))
        return self._typed[command]

    def _run(self, words: list[str]) -> str:
        if any(word.startswith("gs://") for word in words) and "launch" not in words:
            self._bucket()
        printed = io.StringIO()
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            endless = {"serve": _serves, "watch": _watches}
            code = endless[words[0]](words[1:]) if words[0] in endless else main.main(words)
        log.speak_as("")
        assert code == 0, printed.getvalue()
        return printed.getvalue()


def _watches(words: list[str]) -> int:
    """0 if there is a page of the run."""
    page, _ = Pages(parse(main.parser_of("watch"), words).runs).newest()
    print(page[-2000:].decode(errors="replace"))  # what the reader sees
    return 0 if b'id="recipe"' in page else 1


def _serves(words: list[str]) -> int:
    """0 if the server lists its models until it is stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, "a-key-of-the-pages")
        words = [word for n, word in enumerate(words) if "--port" not in words[max(0, n - 1) : n + 1]]
        ask = lambda url: get(f"{url}/v1/models", Authorization="Bearer a-key-of-the-pages")["data"]  # noqa: E731
        (models,), code = serve_until(words, ask)
    # The base of a run that was tuned is served beside it; that of an adapter is the model itself.
    beside = {model["base"] for model in models if model["base"]} - {Path(words[0]).name}
    assert beside <= {model["id"] for model in models}
    assert len(models) == 1 + words.count("--adapter") + len(beside)
    return code - 130  # stopped, as by Ctrl-C


def _as_run_here(command: str) -> list[str]:
    """The words after `tpullm`: launches send nothing, the quickstart is the tiny run, trainings take two steps."""
    verb, *words = shlex.split(command)[1:]
    if verb == "launch":
        return [verb, *words] if "--dry-run" in words else [verb, *words[:1], "--dry-run", *words[1:]]
    if words[:1] == ["quickstart"]:
        words = [str(TINY), *words[1:]] + ([] if "--run" in words else ["--run", "runs/quickstart"])
    elif words[:1] == ["real"]:
        words += REAL
    elif verb in ("run", "finetune"):
        words += SHORT + (TUNED if {"runs/mine", "runs/small", "runs/student"} & set(words) else SMALL)
        words += ["--tokenizer.vocabulary_size=500"] if {"my_recipe.yaml", "law-ja"} & set(words) else []
        words += LAWS if "law-ja" in words else []
    elif verb in ("generate", "chat"):
        words += ["--tokens=8"]
    return [verb, *words]


def _with_recipes(folder: Path) -> Path:
    """The folder, with `configs/` as the project has it and the recipes that pages show as files."""
    (folder / "configs").symlink_to(ROOT / "configs")
    for block in [block for page in PAGES for block in blocks(page, "yaml")]:
        if named := re.match(r"# (\w+\.yaml)\n", block):
            (folder / named[1]).write_text(block, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory, tiny_run, _storage_server):
    folder = _with_recipes(tmp_path_factory.mktemp("reader"))
    (folder / "runs").mkdir()
    shutil.copytree(tiny_run, folder / "runs" / "quickstart")
    shutil.copytree(tiny_run, folder / "runs" / "profiled", ignore=shutil.ignore_patterns("pretrain"))
    for model in ("published", "large"):
        directory(folder / "models" / model, layers=1)
    change(directory(folder / "models" / "long", layers=1) / "config.json", max_position_embeddings=512)
    (folder / "my_texts").mkdir()
    texts = [document["text"] for document in document_files.read(tiny_run / "documents", "tenki", "train")]
    for number in range(30):
        text = "\n".join(texts[number * 10 :][:10])
        (folder / "my_texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    answer = {"role": "assistant", "content": "はい。"}
    lines = [json.dumps({"messages": [{"role": "user", "content": f"元気{n}？"}, answer]}) for n in range(150)]
    (folder / "my_conversations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "my_questions.jsonl").write_text(blocks(ROOT / "README.md", "json")[0], encoding="utf-8")
    problems.write(folder / "my_problems.jsonl", problems.ROWS[:1])
    (folder / "my_laws").mkdir()
    (folder / "my_laws" / "tea.xml").write_text(LAW, encoding="utf-8")

    def bucket():
        remote = storage.path("gs://my-bucket/quickstart")
        with contextlib.suppress(OSError):  # it is there already
            _storage_server.make("my-bucket")
        files = [path for path in tiny_run.rglob("*") if path.is_file() and path.name != lock.FILE]
        names = [str(path.relative_to(tiny_run)) for path in files]
        storage.remote().upload_all(tiny_run, remote, names)

    return Reader(folder, bucket)


def _fetches(command: str) -> bool:
    words = shlex.split(command)
    return "--tasks" in words and not words[words.index("--tasks") + 1].endswith(".jsonl")


@pytest.mark.ci  # the harness reads the files of all its tasks, 7 s
def test_the_names_of_tasks_are_known():
    pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    parser = main.parser_of("evaluate", shows=True)
    asked = [parsing.parse(parser, shlex.split(command)[2:]).tasks for command in COMMANDS if _fetches(command)]
    names = {name for tasks in asked for name in tasks.split(",")} - {problem_files.HUMANEVAL}
    assert len(names) > 3 and harness_tasks.harness_index(sorted(names))


def _parse(verb: str, words: list[str]):
    """What a verb's own parser makes of its command line; no work begins."""
    if verb == "launch":
        own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
        parser = parsing.Parser("tpullm launch")
        launch.add_arguments(parser)
        return parsing.settings_of(parser, own, LaunchConfig), command and _parse(command[0], command[1:])
    about = main.VERBS[verb]
    shows = bool(about.shows) and about.shows in words
    _, words = place.take_flags(words)
    parser = main.parser_of(verb, shows=shows)
    return parsing.recipe_of(parser, words) if about.recipe and not shows else parsing.parse(parser, words)


@pytest.fixture(scope="module")
def folder_with_runs(tmp_path_factory):
    folder = _with_recipes(tmp_path_factory.mktemp("parsed"))
    for run in ("mine", "small", "student"):
        (folder / "runs" / run).mkdir(parents=True)
        shutil.copy(ROOT / "configs" / "quickstart.yaml", folder / "runs" / run / "recipe.yaml")
    return folder


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("tpullm")])
def test_a_command_of_tpullm_is_parsed(folder_with_runs, command):
    verb, *words = shlex.split(command)[1:]
    with contextlib.chdir(folder_with_runs):
        assert _parse(verb, words)


@pytest.mark.parametrize("words", ["plan 8b --serch", "pretrain quickstart --pretrain.step 2", "launch local --nods 2"])
def test_a_wrong_command_is_not_parsed(words):
    with pytest.raises(UserError, match="the nearest is"):
        _parse(words.split()[0], words.split()[1:])


@pytest.mark.ci
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith("tpullm") and not _fetches(command)]
)
def test_a_command_of_tpullm(reader, command):
    shows = {
        "launch local": "processes:",
        "launch slurm": "#SBATCH",
        "launch gke": "kind: JobSet",
        "launch": "requests:",
        "": "",
    }
    shown = reader.types(command)
    assert shown and next(what for target, what in shows.items() if target in command) in shown


def _gets_what_was_written(words):
    """Another program, given what a command before it has written."""
    written = {shlex.split(command)[3] for command in COMMANDS if command.startswith("tpullm export")}
    model = PurePosixPath(words[-1])
    if words[:2] == ["llama-server", "-m"]:
        assert model.name == f"{model.parent.name}-q8_0.gguf"
        model = model.parent
    assert str(model) in written


def _asks_a_server(words):
    """The request is answered, by the stand-in, for a model of this name."""
    address, *options = words[1:]
    path = address.removeprefix("http://127.0.0.1:8000")
    body = json.loads(options[options.index("-d") + 1]) if "-d" in options else None
    with serving("quickstart") as server:
        answer = server.ask(path, body, headers={"authorization": None})
    assert answer.status == 200 and answer.text
    assert body is None or options[:2] == ["-H", "Content-Type: application/json"]


def _makes(words):
    """`make benchmarks` would find the folder and say that it is made."""
    (targets,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert words[1] in targets.split() and all(re.fullmatch(r"[A-Z]+=\S+", word) for word in words[2:])


SCRIPTS = {entry.name for entry in importlib.metadata.entry_points(group="console_scripts")}
# By program: the words that a page may give it, or a function that checks them.
OTHERS = {
    "curl": _asks_a_server,
    "export": rf"{KEY}=.*",
    "python": r"benchmarks/serving_conformance\.py( --url| http://127\.0\.0\.1:8000/v1)*",
    ".": r"\.venv/bin/activate",
    "make": _makes,
    "pip": rf"install 'tpullm\[(({'|'.join(EXTRAS)}),?)+\]'",
    "launch/local.sh": rf"--extra ({'|'.join(EXTRAS)})\b.*",
    "hf": ".*" if "hf" in SCRIPTS else "hf comes with tpullm no more",
    "vllm": _gets_what_was_written,
    "llama-server": _gets_what_was_written,
    "ray": r"(up|dashboard) cluster\.yaml|job submit --address http://127\.0\.0\.1:8265 -- tpullm collect .*",
    "gcloud": r"(auth|container clusters|iam|projects|storage) .*|services \S+( [a-z]+\.googleapis\.com)+",
}


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("tpullm")])
def test_another_command(command):
    words = shlex.split(command)
    assert words[0] in OTHERS, f"say in OTHERS how a test checks {words[0]}"
    check = OTHERS[words[0]]
    assert re.fullmatch(check, shlex.join(words[1:])) if isinstance(check, str) else check(words) is None


PYTHON = sorted({block for page in PAGES for block in blocks(page, "python")})


@pytest.mark.ci
@pytest.mark.parametrize("block", PYTHON)
def test_the_lines_for_a_client_and_for_a_notebook(reader, capsys, block):
    made = {}
    with contextlib.chdir(reader._folder), serving("quickstart") as server:
        exec(block.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), made)
    if "import openai" not in block:
        assert made["logits"].shape == (1, len(made["ids"]), made["model"].config.vocabulary_size)
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", sorted({block for page in PAGES for block in blocks(page, "yaml")}))
def test_a_piece_of_a_recipe_loads(tmp_path, block):
    (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
    assert parsing.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.ja.md"], ids=name_of)
def test_the_quickstart_learns_to_answer_the_questions_of_the_readme(page):
    """They are asked in training, or are of the same kind: the score after `make quickstart` is no 0 %."""
    known = {question.question: question.answers for part in split_questions(0.2, 0) for question in part}
    rows = [json.loads(line) for line in blocks(page, "json")[0].splitlines()]
    assert len(rows) == 3 and [known.get(row["question"]) for row in rows] == [(row["answer"],) for row in rows]


EXAMPLES = {line for page in PAGES for block in blocks(page, "json") for line in block.splitlines()}
CONVERSATIONS = sorted(line for line in EXAMPLES if line.startswith('{"messages"'))
TEMPLATES = sorted({block for page in PAGES for block in blocks(page, "jinja")})


@pytest.mark.parametrize("line", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_chat_template_shows_the_conversation(template, line):
    messages = json.loads(line)["messages"]
    text, answers = ChatTemplate(template, {}, "chatml.jinja").show("answers", messages)
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert [text[answer.start : answer.end] for answer in answers] == [f"{content}<|im_end|>\n" for content in said]


@pytest.mark.parametrize("page", [page for page in PAGES if not page.match("docs/ja/*")], ids=name_of)
def test_both_languages_have_the_same_commands(page):
    english = page.name == "README.md"
    other = ROOT / "README.ja.md" if english else ROOT / "docs" / "ja" / page.name
    if page.name == "README.ja.md" or not other.exists():
        pytest.skip("in one language only")
    assert sorted(set(commands(page))) == sorted(set(commands(other)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_leads_somewhere_and_the_files_that_are_named_exist(page):
    named = re.findall(r"`((?:configs|benchmarks|launch|docs|tpullm)/[\w./-]+\.\w+)`", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_a_readme_is_short_and_has_the_two_commands_and_the_other_language():
    assert all(len(page.read_text("utf-8").splitlines()) <= 200 for page in ROOT.glob("README*.md"))
    assert {"make quickstart", "make test"} <= set(commands(ROOT / "README.md"))
    assert "[日本語](README.ja.md)" in (ROOT / "README.md").read_text("utf-8")


def test_the_reference_is_what_the_schema_gives():
    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))["page"]()
    assert (ROOT / "docs" / "en" / "reference.md").read_text("utf-8") == made, "run: python docs/reference.py"


def test_every_verb_is_shown_and_every_page_is_in_the_navigation():
    assert set(main.VERBS) <= {shlex.split(command)[1] for command in COMMANDS if command.startswith("tpullm")}
    shown = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [name_of(page) for page in PAGES if page.parent.name == "en" and f" {page.name}\n" not in shown] == []


def test_the_architecture_is_a_short_page_that_names_every_file():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    named, room, folder = set(), "", ""
    for first, files in re.findall(r"^\| (.*?) ?\| (.*) \|$", text, re.MULTILINE):
        if found := re.fullmatch(r"\*\*(\w+)\*\*", first):
            room = folder = found[1]
        elif found := re.fullmatch(r"`([\w/]+)/`", first):
            folder = f"{room}/{found[1]}"
        named |= {f"{folder}/{name}" for name in re.findall(r"`(\w+)`", files)}
    files = [path.relative_to(ROOT / "tpullm").with_suffix("") for path in (ROOT / "tpullm").rglob("*.py")]
    assert {file.as_posix() for file in files if not file.name.startswith("__")} - named == set()
