"""Parts and slices come back as they were written, and broken files are named."""

import hashlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus import made_documents
from tpullm.corpus import document_files
from tpullm.corpus.document_files import APART, EXACT, NEAR, USED, Part
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError

SOURCE = Source("notes", "text", licence="CC0-1.0", language="ja")
TEXTS = [f"{number}番目の文です。\n" * 3 for number in range(20)]


@pytest.fixture
def written(tmp_path):
    """A folder with twenty documents, six in a part."""
    made_documents.write(tmp_path, [(SOURCE, "train", TEXTS)], per_part=6)
    return tmp_path


def test_documents_come_back_in_order_with_their_facts(written):
    found = list(document_files.read(written, "notes", "train"))
    assert [document["text"] for document in found] == TEXTS
    for number, document in enumerate(found):
        digest = hashlib.sha256(document["text"].encode()).hexdigest()
        facts = {"id": digest[:16], "source": "notes", "licence": "CC0-1.0", "language": "ja", "hash": digest}
        place = {"file": "file", "record": f"line {number + 1}", "url": "", "date": ""}
        assert document == facts | place | {"text": document["text"]}
    assert list(document_files.read(written, "notes", "held_out")) == []
    assert list(document_files.read(written, "others", "train")) == []
    last = document_files.parts(written)[-1]  # of two documents; one gets a licence of its own
    with document_files.Writer(last.path) as writer:
        writer.write("a", "0" * 64, "en", "", "f", "", "", "")
        writer.write("b", "1" * 64, "en", "MIT", "f", "", "https://example.org/b", "2026-01-02")
    own = [(one["licence"], one["url"], one["date"]) for one in document_files.read(written, "notes", "train")]
    assert own[-2:] == [("CC0-1.0", "", ""), ("MIT", "https://example.org/b", "2026-01-02")]


def test_marks_say_what_is_read(written):
    first, second, *_ = document_files.parts(written)
    marks = np.array([USED, APART, EXACT, NEAR, USED, APART, USED, USED, EXACT, EXACT, EXACT, EXACT])
    document_files.write_marks(written / "marks" / "made" / "both.npy", marks)
    places = ("made/both.npy", 0, 6), ("made/both.npy", 6, 12)
    parts = [Part(written, part.key, "notes", "x", place) for part, place in zip((first, second), places, strict=True)]
    document_files.write_parts(written, parts)
    assert document_files.parts(written) == parts
    for split, rows in (("train", (0, 4, 6, 7)), ("held_out", (1, 5))):
        found = document_files.read(written, "notes", split)
        assert [one["text"] for one in found] == [TEXTS[row] for row in rows]
    copies = [(one["text"], mark) for one, mark in document_files.read_part(parts[0], (EXACT, NEAR))]
    assert copies == [(TEXTS[2], EXACT), (TEXTS[3], NEAR)]


@settings(max_examples=15)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=12), st.integers(1, 40))
def test_any_text_comes_back_from_row_groups_of_any_size(tmp_path_factory, texts, size):
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(document_files, "GROUP_CHARACTERS", size)
        parts = made_documents.write(folder, [(SOURCE, "train", texts)])
    assert [one["text"] for one in document_files.read(folder, "notes", "train")] == texts
    for part in parts:
        groups = [table.column("text").to_pylist() for table in document_files.tables(part.path)]
        assert all(sum(map(len, group)) >= size for group in groups[:-1])


def test_some_rows_are_shown_as_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(document_files, "GROUP_CHARACTERS", 50)
    (part,) = made_documents.write(tmp_path, [(SOURCE, "train", TEXTS)])
    found = document_files.examples(part, np.array([3, 17, 18]))
    expected = [(f"line {row + 1}", TEXTS[row][:80]) for row in (3, 17, 18)]
    assert [(one["record"], one["beginning"]) for one in found] == expected
    assert document_files.examples(part, np.array([], np.int64)) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b""])
@pytest.mark.parametrize("what", ["documents", "marks"])
def test_a_broken_file_is_named(written, damage, what):
    part = document_files.parts(written)[1]
    path = part.path if what == "documents" else written / "marks" / part.marked[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path.name}: is broken .*remove its documents folder and run collect"):
        list(document_files.read(written, "notes", "train"))


KEYS = st.lists(st.integers(0, 2**64 - 1), max_size=30).map(lambda keys: np.array(sorted(keys), np.uint64))


@settings(max_examples=40)
@given(KEYS, st.integers(0, 5), st.integers(1, 3))
def test_a_slice_has_the_keys_of_its_range(tmp_path_factory, keys, power, width):
    path, ranges = tmp_path_factory.mktemp("ranges") / "a.bin", 1 << power
    rows = np.stack([keys + np.uint64(column) for column in range(width)], axis=1)
    with mock.patch("tpullm.system.storage.atomic._sync_to_disk"):  # most of the time, and nothing is lost here
        document_files.write(path, document_files.range_bounds(keys, ranges), rows)
    found = [document_files.read_range(path, number, width) for number in range(ranges)]
    assert np.array_equal(np.concatenate(found), rows)
    for number, own in enumerate(found):
        assert all(int(key) * ranges >> 64 == number for key in own[:, 0])


def test_ranges_are_a_power_of_two_and_keep_each_below_its_bound():
    assert [document_files.count(rows, 10) for rows in (0, 9, 10, 19, 20, 1000)] == [1, 1, 2, 2, 4, 128]
