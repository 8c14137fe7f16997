"""What `evaluate` says of a run with text of the user's own."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tpullm.corpus import document_files
from tpullm.corpus.sources import YOURS
from tpullm.data.stream import held_out_batches
from tpullm.data.token_store import TokenStore
from tpullm.engine.session import load_session
from tpullm.evaluation import own_text, run_results, tables
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
    return recipe, run, load_session(run / "pretrain")


@pytest.fixture(scope="module")
def found(with_own_text):
    return own_text.measure_own_text(*with_own_text)


def test_the_compressor_has_the_bytes_of_the_model(with_own_text, found, capsys):
    """The bytes that the bits of the model are divided by: nats a token x tokens = bits a byte x bytes."""
    recipe, run, session = with_own_text
    measured, rows = run_results.held_out_loss(recipe, run, session), np.arange(8)
    batches = held_out_batches(recipe, run, 8, recipe.pretrain.sequence_length, recipe.evaluate.rows, rows)[YOURS]
    nats = measured["loss_nats_per_token"][YOURS] * sum(float(batch.weights.sum()) for batch in batches)
    bits = measured["bits_per_byte"][YOURS] * found["compressor"]["bytes"]
    assert bits * 0.6931472 == pytest.approx(nats, rel=1e-6), "float32 sums of a few hundred tokens"
    assert 0 < found["compressor"]["bits_per_byte"] < 8
    tables.show_run({**measured, "yours": found, "seconds": {"evaluate": 1.0}})
    said = "".join(capsys.readouterr())
    assert "your text by xz -9e" in said and f"{found['compressor']['bits_per_byte']:.3f} bits a byte" in said


def test_what_is_shown_is_of_the_held_out_text(with_own_text, found):
    """And of the times that all of it was read, tokens of the training divided by three (rows are not all full)."""
    recipe, run, _ = with_own_text
    records = document_files.read(run / "documents", YOURS, document_files.HELD_OUT)
    held_out = "\n".join(record["text"] for record in records)
    assert found["sentence"] in held_out and found["continuations"] and found["blanks"]
    assert all(item["prompt"] in held_out for item in found["continuations"])
    assert all(item["text"].replace("【?】", item["word"]) in held_out for item in found["blanks"])
    json.dumps(found)
    lengths = TokenStore(run / "tokens" / YOURS / "train").lengths
    tokens = int((lengths.tokens * lengths.counts).sum())
    drawn = recipe.pretrain.steps * recipe.pretrain.batch_size * recipe.pretrain.sequence_length / 3
    assert found["times_read"] == pytest.approx(drawn / tokens, rel=0.1)
