"""`tpullm explain WORD`: every column that is printed has its words, in both languages."""

import json
import re

import pytest

from tpullm.cli import explain
from tpullm.cli.main import main
from tpullm.evaluation import tables
from tpullm.training.meter import log_line

ENTRIES = explain.known_words()
ROW = {"step": 2, "loss": 1.5, "grad_norm": 0.5, "learning_rate": 1e-3, "tokens_per_second": 7, "mfu": 0.4}


def printed(capsys, *words) -> str:
    assert main(["explain", *words]) == 0
    return capsys.readouterr().out


def test_every_column_of_a_trainings_line_is_explained():
    line = log_line(ROW | {"data_wait_share": 0.1, "step_seconds": 3.0}, 90)
    parts = re.split(" {2,}(?=[a-zA-Z0-9])", line)
    columns = [re.sub(r"[\d:,./%e+-]*\d[\d:,./%e+-]*", "", part).strip() for part in parts]
    assert len(columns) >= 8 and [name for name in columns if name and name not in ENTRIES] == []


def test_every_column_of_the_tables_of_tasks_is_explained(monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "show_table", lambda title, header, *_, **__: shown.extend(header))
    tables.show_tasks({"tasks": {}, "model": {"name": "a"}})
    assert len(shown) == 6 and [name for name in shown if name not in ENTRIES] == []


def test_every_word_is_explained_in_both_languages_in_a_few_sentences():
    for word, entry in ENTRIES.items():
        assert set(entry) == {"name", "en", "ja"}, word
        assert 1 <= len(re.findall(r"[.?](?: |$)", entry["en"])) <= 5 and entry["en"].endswith("."), word
        assert 1 <= entry["ja"].count("。") <= 5 and entry["ja"].endswith("。"), word
    names = [entry["name"] for entry in ENTRIES.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("words", [["MFU"], ["mfu"], ["--language", "en", "MFU（モデルFLOPs利用率）"]])
def test_a_word_in_any_letters_and_language(capsys, words):
    assert printed(capsys, *words).startswith("MFU: Model FLOPs utilization")
    assert printed(capsys, *words[-1:], "--language", "ja").startswith("MFU（モデルFLOPs利用率）: マシン")


def test_several_words_the_list_and_json(capsys):
    assert printed(capsys, "grad", "norm").startswith("grad norm: The length of the gradient")
    assert printed(capsys).split("\n")[:-1] == list(ENTRIES)
    assert "grad norm (勾配ノルム)" in printed(capsys, "--language", "ja")
    assert json.loads(printed(capsys, "--json")) == list(ENTRIES)
    found = json.loads(printed(capsys, "loss", "--json"))
    assert (found["word"], found["name"]) == ("loss", "損失") and found["explanation"] == ENTRIES["loss"]["en"]


@pytest.mark.parametrize(("word", "nearest"), [("perplexty", "perplexity"), ("LOSSES", "loss"), ("損失関数", "損失")])
def test_an_unknown_word_is_told_the_nearest(capsys, word, nearest):
    assert main(["explain", word]) == 2
    assert capsys.readouterr().err == f"tpullm: {word}: is not explained; the nearest is {nearest}\n"
