"""A passage leads to the documents that hold it, and to the very steps whose batches have them."""

import json
from types import SimpleNamespace

import pytest

from tests.cli.test_tokenize import RECIPE, made, run, texts_of  # noqa: F401
from tpullm.cli import trace
from tpullm.data.stream import pretraining_stream
from tpullm.system.errors import UserError


def asked(capsys, run, json_=True, **words):  # noqa: F811
    capsys.readouterr()
    trace.main(RECIPE, run, SimpleNamespace(**({"passage": "", "url": "", "hash": ""} | words), json=json_))
    said = capsys.readouterr().out
    return json.loads(said) if json_ else said


def test_the_steps_are_those_whose_batches_have_the_document(made, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(trace, "_ROWS_AT_ONCE", 3 * RECIPE.pretrain.batch_size)  # several steps at once, not all
    stream = pretraining_stream(RECIPE, made)
    reads = {}
    for step in range(RECIPE.pretrain.steps):
        for piece in stream.documents_at(step):
            reads.setdefault((piece.source, piece.document), set()).add(step)
    assert "read in the steps " in asked(capsys, made, json_=False, passage="train")
    hits = asked(capsys, made, passage="train")
    assert len(hits) == 120 and all(hit["fate"] == "train" for hit in hits)
    for hit in hits:
        assert hit["steps"] == sorted(reads.get((hit["source"], hit["number"]), set()))
        assert texts_of(hit["source"], "train")[hit["number"]].endswith("train")
    assert any(len(hit["steps"]) > 1 for hit in hits) or max(map(len, reads.values())) == 1


def test_what_is_held_out_is_found_and_read_in_no_step(made, capsys):  # noqa: F811
    hits = asked(capsys, made, passage="held_out")
    assert len(hits) == 10 and all((hit["fate"], hit["number"], hit["steps"]) == ("held_out", -1, []) for hit in hits)
    said = asked(capsys, made, json_=False, passage="held_out")
    assert said.startswith("10 documents have it, 0 of them for training\n") and "read in the steps" not in said


def test_before_there_are_tokens_documents_are_found_and_no_steps(run, tmp_path, capsys):  # noqa: F811
    hits = asked(capsys, run, passage=texts_of("ja", "train")[7])
    assert hits and all(hit["steps"] == [] for hit in hits)
    assert asked(capsys, run, json_=False, passage="no such text") == f"no document of {run / 'documents'} has it\n"
    with pytest.raises(UserError, match="an empty text is in every document; write --passage"):
        asked(capsys, run)
    with pytest.raises(UserError, match="no finished documents; run `tpullm collect` first"):
        asked(capsys, tmp_path / "elsewhere", passage="a")
