"""`tpullm report`: one file, written once, quickly and without JAX."""

import json
import os
import re

import pytest

from tpullm.cli import main, report
from tpullm.recipe import parsing as recipes
from tpullm.recipe.schema import Recipe, TokenizerConfig
from tpullm.system import storage
from tpullm.tokenizer.trainer import train

TEXT = "今日はいい天気ですね。私はリンゴを食べるのが好きです。The weather is nice today.\n"
METRICS = [{"step": 1, "tokens": 10, "loss": 3.0}, {"step": 1, "tokens": 10, "eval_loss": {"tenki": 2.0}}]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    storage.write_text(folder / "recipe.yaml", recipes.dump(Recipe(name="天気")))
    config = TokenizerConfig(vocabulary_size=0, model_type="char", words="none")
    train([("ja", TEXT)], config, folder / "tokenizer" / "tokenizer.model")
    storage.write_text(folder / "pretrain" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in METRICS))
    return folder


def test_it_writes_one_page_and_again_where_results_are_new(run, capsys):
    before = set(run.rglob("*"))
    report.main(Recipe(name="天気"), run)
    assert set(run.rglob("*")) - before == {run / "report.html"}
    made = (run / "report.html").read_text(encoding="utf-8")
    assert made.startswith("<!doctype html>") and made.rstrip().endswith("</html>")
    assert "天気" in made and 'id="tokenize"' in made and 'id="pretrain"' in made
    os.utime(run / "report.html", (1, 1))
    report.main(Recipe(name="天気"), run)
    assert (run / "report.html").stat().st_mtime == 1 and "unchanged" in capsys.readouterr().err
    storage.write_json(run / "evaluate" / "results.json", {"tuned": {"accuracy": 0.5}})
    report.main(Recipe(name="天気"), run)
    assert "50.0%" in (run / "report.html").read_text(encoding="utf-8")


def test_the_language_is_the_recipes_or_else_the_environments(run, monkeypatch):
    def language(recipe):
        report.main(recipe, run)
        return re.search('<html lang="(..)">', (run / "report.html").read_text(encoding="utf-8"))[1]

    for variable in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    assert language(Recipe(name="天気")) == "ja"
    assert language(Recipe(name="天気", language="en")) == "en"
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert language(Recipe(name="天気")) == "en"
    assert main.main(["report", "--run", str(run), "--language", "ja"]) == 0
    assert '<html lang="ja">' in (run / "report.html").read_text(encoding="utf-8")
