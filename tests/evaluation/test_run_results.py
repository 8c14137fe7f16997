"""What `evaluate` says of a run: of the user's own text, and of questions before and after tuning."""

import dataclasses
import json
import shutil

import pytest

from tpullm.corpus import document_files, tenki
from tpullm.corpus.question import Question
from tpullm.corpus.sources import YOURS
from tpullm.engine.session import load
from tpullm.evaluation import run_results
from tpullm.recipe import parsing as recipes


@pytest.fixture(scope="module")
def with_own_text(tiny_run, tmp_path_factory):
    """The tiny run in which the text of tenki is there once more, as the user's own; its recipe and its model."""
    run = tmp_path_factory.mktemp("own") / "tiny"
    shutil.copytree(tiny_run, run)
    shutil.copytree(run / "tokens" / "tenki", run / "tokens" / YOURS)
    parts = document_files.parts(run / "documents")
    own = [dataclasses.replace(part, source=YOURS) for part in parts if part.source == "tenki"]
    document_files.write_parts(run / "documents", [*parts, *own])
    recipe = dataclasses.replace(recipes.load(run / "recipe.yaml"), text="my_texts")
    return recipe, run, load(run / "pretrain")


@pytest.fixture(scope="module")
def found(with_own_text):
    return run_results.of_own_text(*with_own_text)


def test_the_compressor_has_the_bytes_of_the_model(with_own_text, found):
    """The bytes that the bits of the model are divided by: nats a token x tokens = bits a byte x bytes."""
    recipe, run, session = with_own_text
    measured = run_results.held_out_loss(recipe, run, session)
    tokens = sum(float(batch.weights.sum()) for batch in run_results.held_out_rows(recipe, run, YOURS, session))
    nats = measured["loss_nats_per_token"][YOURS] * tokens
    bits = measured["bits_per_byte"][YOURS] * found["compressor"]["bytes"]
    assert bits * 0.6931472 == pytest.approx(nats, rel=1e-6), "float32 sums of a few hundred tokens"
    assert 0 < found["compressor"]["bits_per_byte"] < 8


def test_what_is_shown_is_of_the_held_out_text(with_own_text, found):
    _, run, _ = with_own_text
    held_out = "\n".join(
        record["text"] for record in document_files.read(run / "documents", YOURS, document_files.HELD_OUT)
    )
    assert found["sentence"] in held_out and found["continuations"] and found["blanks"]
    assert all(item["prompt"] in held_out for item in found["continuations"])
    assert all(item["text"].replace("【?】", item["word"]) in held_out for item in found["blanks"])
    json.dumps(found)


def test_own_text_is_drawn_for_a_third_of_the_tokens(with_own_text, found):
    """Of the times that all of it was read, tokens of the training divided by three (rows are not all full)."""
    recipe, run, _ = with_own_text
    tokens = sum(len(ids) for ids in _documents(run))
    drawn = recipe.pretrain.steps * recipe.pretrain.batch_size * recipe.pretrain.sequence_length / 3
    assert found["times_read"] == pytest.approx(drawn / tokens, rel=0.1)


def _documents(run):
    from tpullm.data.token_store import TokenStore

    tokens = TokenStore(run / "tokens" / YOURS / "train")
    return [tokens.document(index) for index in range(len(tokens.lengths))]


def test_a_table_names_both(with_own_text, found, capsys):
    recipe, run, session = with_own_text
    results = {**run_results.held_out_loss(recipe, run, session), "yours": found, "seconds": {"evaluate": 1.0}}
    run_results.show(results)
    said = "".join(capsys.readouterr())
    assert "your text by xz -9e" in said and f"{found['compressor']['bits_per_byte']:.3f} bits a byte" in said


def test_answers_are_right_word_for_word(monkeypatch):
    asked = tenki.split_questions(0.0, 0)[0][:3]
    said = {"base": ["", "?", " "], "tuned": [asked[0].answers[-1] + "\n", asked[1].answers[0], "?"]}
    monkeypatch.setattr(run_results, "answer", lambda model, texts: said[model])
    with run_results.judge("tenki") as right:
        found = run_results.ask("base", "tuned", asked, asked, right)
    assert found["base"]["accuracy"] == 0 and found["tuned"] == {"accuracy": pytest.approx(2 / 3), "questions": 3}
    assert [row["right"] for row in found["answers"]] == [True, True, False]
    assert [row["expected"] for row in found["answers"]] == [question.answers[0] for question in asked]
    assert sum(kind["questions"] for kind in found["kinds"].values()) == 3
    assert sum(kind["tuned"] * kind["questions"] for kind in found["kinds"].values()) == pytest.approx(2)


def test_beside_the_shares_stands_that_of_the_commonest_answer_of_a_kind_and_a_language(monkeypatch):
    def made(kind, *pairs):
        return [Question(asked, (answer,), kind) for asked, answer in pairs]

    learned = made("word", ("a?", "No"), ("b?", "Yes"), ("c?", "Yes"), ("dですか。", "はい"), ("eですか。", "はい"))
    held_out = made("word", ("f?", "Yes"), ("g?", "No"), ("hですか。", "はい"), ("iですか。", "いいえ"))
    held_out += made("name", ("j?", "Yes"))
    monkeypatch.setattr(run_results, "answer", lambda model, texts: [model] * len(texts))
    with run_results.judge("law") as right:
        kinds = run_results.ask("base", "No", held_out, learned, right)["kinds"]
    assert kinds == {
        "word": {"base": 0, "tuned": 1 / 4, "guess": 1 / 2, "questions": 4},
        "name": {"base": 0, "tuned": 0, "guess": 0, "questions": 1},
    }


def test_code_is_right_if_its_tests_pass():
    fields = {"prompt": "def double(n):\n", "tests": "assert double(2) == 4\nassert double(-1) == -2\n"}
    question = Question("complete", ("return 2 * n",), "completion", "double", fields)
    with run_results.judge("programming") as right:
        said = ["return n + n", "return n * n", "import os; os._exit(0)", "return (", "while True: pass"]
        assert [right(question, text) for text in said] == [True, False, False, False, False]
        plain = Question("where?", ("math",), "module")
        assert right(plain, "`Math`.") and not right(plain, "maths")
