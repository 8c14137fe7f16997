"""A passage, an address or a hash leads to every document that has it, and to what became of it."""

import json

import pytest

from tests.corpus.test_collect import _collect, _recipe, _source, _story, _write
from tpullm.corpus import document_files, tracing
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.tracing import Wanted

TEXTS = [_story(number) for number in range(60)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "in").mkdir()
    for number in range(3):
        _write(folder / "in" / f"{number}.jsonl", TEXTS[20 * number : 20 * number + 20])
    _write(folder / "in" / "3.jsonl", [TEXTS[3], "短い"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tpullm.corpus.files.source_files.BUNDLE_BYTES", 1)
        patched.setattr(document_files, "GROUP_CHARACTERS", 500)
        _collect(_recipe(_source(folder / "in")), folder / "run")
    return folder / "run"


def find(run, **wanted):
    return tracing.find(run / "documents", Wanted(**wanted), 2)


def test_every_document_that_holds_a_passage_is_found_with_its_number_and_fate(run):
    training = [document["text"] for document in document_files.read(run / "documents", "stories", "train")]
    for text in (TEXTS[0], TEXTS[30], TEXTS[59]):
        passage = text.split("\n")[2]
        hits = find(run, passage=passage)
        holding = [other for other in TEXTS if passage in other]
        assert len(hits) == len(holding)
        for hit, other in zip(hits, holding, strict=True):
            assert hit.facts["hash"] == text_hash(other) and " ".join(passage.split()) in hit.shown
            assert hit.fate == ("train" if other in training else "held_out")
            assert hit.number == (training.index(other) if other in training else -1)


def test_a_copy_is_found_beside_the_document_that_was_kept(run):
    hits = find(run, hash=text_hash(TEXTS[3])[:20])
    assert sorted(hit.fate for hit in hits) in (["exact duplicate", "train"], ["exact duplicate", "held_out"])
    assert [hit.facts["file"] for hit in hits] == ["0.jsonl", "3.jsonl"]
    assert {hit.facts["licence"] for hit in hits} == {"CC0-1.0"}
    (hit,) = find(run, hash=text_hash("短い"))  # it was dropped, with its reason
    assert (hit.fate, hit.number, hit.shown) == ("too short", -1, "短い")
    assert find(run, passage="短い") == [] and find(run, passage="no such text") == []


def test_a_document_is_found_by_its_address(tmp_path, run):
    part = document_files.parts(run / "documents")[1]
    rows = json.loads(json.dumps([row for table in document_files.tables(part.path) for row in table.to_pylist()]))
    with document_files.Writer(part.path) as writer:
        for number, row in enumerate(rows):
            writer.write(*(row | {"url": f"https://example.org/{number}"}).values())
    (hit,) = find(run, url="https://example.org/7")
    assert hit.facts["hash"] == rows[7]["hash"]
