"""The terminal in Japanese: every line but a few rare ones has its translation, and the catalogue has nothing else."""

import ast
import errno
import io
import os
import re
import time

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
from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import sections
from tpullm.system import language, log
from tpullm.system.language import catalogue, preferred, spoken

NAME = re.compile(r"\{(\w+)\}")
# Modules with rarer lines that are still English. Every line that a user sees of all others is translated.
RARE = """
    corpus/tenki/blanks corpus/tenki/question_set corpus/domains/packages corpus/files/laws corpus/files/archives
    corpus/filters/address_lists corpus/filters/quality_classifier corpus/filters/quality model/mesh_fit
    planning/proof planning/compiling planning/plans planning/economics evaluation/measured_model
    evaluation/compared_texts evaluation/comparison evaluation/question_files evaluation/problem_files
    evaluation/tasks training/teaching training/rewards/code_tests training/rewards/form training/rewards/scorer
    training/rewards/own_function training/rewards/right_number training/rewards/reward_set training/rewards/reasoning
    training/diagnosis training/trackers formats/gguf/configs formats/gguf/architectures formats/publish
    formats/huggingface/writing formats/huggingface/configs formats/huggingface/adapters formats/huggingface/reading
    cli/python_api cli/launch cli/python_model data/token_files data/examples/reasoning_tasks data/flat_arrays
    data/token_index tokenizer/chat_template tokenizer/published tokenizer/trial system/process/ray_tasks
    system/process/environment system/process/isolated system/storage/mirror system/storage/copies system/storage/gcs
    system/storage/foreign system/cluster/place system/cluster/handshake system/cluster/channel system/cluster/hosts
    run/pypi launch/watch launch/google_batch launch/slurm launch/supervisor launch/compute_engine launch/gpu_network
    launch/job launch/local
""".split()
MODULES = [str(path.relative_to(ROOT / "tpullm").with_suffix("")) for path in (ROOT / "tpullm").rglob("*.py")]
# Lines that are made of others alone.
OTHERS = {ANY, f"{ANY}: {ANY}", f"{ANY}: {ANY}: {ANY}; {ANY}", f"{ANY}.blanks: {ANY}"}
SPEAKERS = ("say", "warn", "UserError", "Interrupted")


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
    return {normal(part) for text in whole for part in (text, *map(str.strip, text.split("\n\n")))}


def lines(module: str) -> set[str]:
    """The lines that a module says or raises."""
    tree, found = ast.parse((ROOT / "tpullm" / f"{module}.py").read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in SPEAKERS:
                found |= set(map(normal, variants(node.args[0], {})))
    return found


def test_every_line_of_these_modules_is_in_the_catalogue():
    said = {line for module in {*MODULES} - {*RARE} for line in lines(module)}
    assert len(said) > 250, "the search for them works"
    missing = said - OTHERS - set(map(normal, catalogue()))
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
    assert dead == set(), "\n".join(dead)
    text = (ROOT / "tpullm/system/ja.yaml").read_text(encoding="utf-8")
    keys = [key.value for key, _ in yaml.compose(text, Loader=yaml.SafeLoader).value]
    assert len(keys) == len(set(keys)), "no line is translated twice"


def test_a_translation_has_the_values_of_its_line():
    for line, said in catalogue().items():
        assert set(NAME.findall(said)) <= set(NAME.findall(line)), line
        assert not [word for word, other in SPELLINGS.items() if re.search(other, said)], said
        assert not re.search(r"[ぁ-ん一-龥ァ-ー] [ぁ-ん一-龥ァ-ー]", said), f"a space between Japanese: {said}"


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
    before = time.process_time()
    for step in range(200):
        spoken(f"step {step}/480  loss 3.2  grad norm 0.50  lr 1.0e-03  20,000 tokens/s  waiting for data 0.1%  0 left")
    assert time.process_time() - before < 0.2, "1 ms a line, on a busy machine"


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
