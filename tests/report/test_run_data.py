"""Reading a run directory: what is missing is empty, what is broken is told in one line."""

import json
import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tpullm import tokenizer
from tpullm.recipe.schema import ModelConfig, Recipe
from tpullm.report import run_data
from tpullm.system.errors import UserError

RECIPE = Recipe(name="quickstart", model=ModelConfig(width=64))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: quickstart\n", encoding="utf-8")
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "evaluate").mkdir()
    return tmp_path


def test_a_new_run_has_its_recipe_and_nothing_else(run):
    data = run_data.read(RECIPE, run)
    assert (data.name, data.recipe) == ("quickstart", "name: quickstart\n")
    assert not any([data.datacard, data.splits, data.pretrain, data.tuned, data.results])
    assert data.model.vocabulary_size == 0, "nothing is known of the vocabulary yet"
    with pytest.raises(UserError, match="not a run directory"):
        run_data.read(RECIPE, run / "nowhere")


def test_a_line_that_is_still_being_written_is_left_out(run):
    (run / "pretrain" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste', encoding="utf-8")
    assert run_data.read(RECIPE, run).pretrain == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("text", ["{broken", "[]"])
def test_what_is_no_object_is_named(run, text):
    (run / "pretrain" / "metrics.jsonl").write_text(f'{{"step": 1}}\n{text}\n{{"step": 3}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2"):
        run_data.read(RECIPE, run)
    (run / "evaluate" / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"results\.json: .*make it again"):
        run_data.read(RECIPE, run)


def test_the_model_is_the_one_that_was_evaluated(run):
    config = {"layers": 7, "vocabulary_size": 99, "unknown": 1}
    (run / "evaluate" / "results.json").write_text(json.dumps({"model": {"config": config}}), encoding="utf-8")
    model = run_data.read(RECIPE, run).model
    assert (model.layers, model.width, model.vocabulary_size, model.head_width) == (7, 64, 99, 16)


@pytest.mark.parametrize(("recipe", "folder"), [(RECIPE, "tokenizer"), (Recipe(base="published"), "base/tokenizer")])
def test_the_examples_are_split_by_the_tokenizer_of_the_model(run, monkeypatch, recipe, folder):
    letters = SimpleNamespace(vocabulary_size=77, pieces=lambda text: [(letter, ord(letter)) for letter in text])
    monkeypatch.setattr(tokenizer, "load", load := Mock(return_value=letters))
    for name in ("tokenizer", "base/tokenizer"):
        (run / name).mkdir(parents=True)
    (run / "evaluate" / "results.json").write_text(json.dumps({"yours": {"sentence": "猫"}}))
    data = run_data.read(recipe, run)
    load.assert_called_once_with(run / folder)
    assert data.model.vocabulary_size == 77
    assert data.splits[0] == [("猫", ord("猫"))] and len(data.splits) == 1 + len(run_data.EXAMPLES)


def test_an_example_that_is_bytes_is_left_out_unless_all_are(run, monkeypatch):
    for bytes_of, left in ((lambda text: not text.isascii(), 2), (lambda text: True, len(run_data.EXAMPLES))):
        split = lambda text, of=bytes_of: [("<0xE4>" if of(text) else "w", 1)] * 4  # noqa: E731
        monkeypatch.setattr(
            tokenizer, "load", lambda folder, split=split: SimpleNamespace(vocabulary_size=9, pieces=split)
        )
        (run / "tokenizer").mkdir(parents=True, exist_ok=True)
        assert len(run_data.read(RECIPE, run).splits) == left


def test_what_is_missing_or_not_a_number_is_none():
    assert run_data.nested_value({"a": {"b": "c"}}, "a", "b") == "c"
    assert run_data.nested_value({"a": 1}, "a", "b") is None
    assert run_data.finite_number({"a": {"b": 2}}, "a", "b") == 2
    for value in (None, math.nan, math.inf, "3", True, {}):
        assert run_data.finite_number({"a": value}, "a") is None
