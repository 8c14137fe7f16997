"""Parquet that takes more memory than its size lets expect, and Parquet that is broken."""

import pyarrow
import pyarrow.parquet
import pytest

from tpullm.corpus.files import opened, readers, records
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import Source


def read(path):
    return list(readers.read(File(path, "parquet", path.stat().st_size), Source("s", "parquet", str(path))))


def write(path, texts, **settings):
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", **settings)
    return path


def test_rows_are_read_a_few_at_a_time_in_their_order(tmp_path, monkeypatch):
    texts = [f"{number} " + "a" * (number % 7 * 100_000) for number in range(200)]
    asked = []
    call = opened.in_child
    monkeypatch.setattr(opened, "in_child", lambda *arguments: asked.append(arguments) or call(*arguments))
    raws = read(write(tmp_path / "a.parquet", texts))
    assert [raw.text for raw in raws] == texts
    assert 2 < len(asked) < 20


def test_rows_that_are_too_much_at_once_are_read_one_by_one(tmp_path, monkeypatch):
    call = opened.in_child

    def limited(function, *arguments):
        if function.endswith(":rows") and arguments[3] > 1 and arguments[4] > 0 or arguments[-1] == 7:
            raise opened.ReadingError("too much")
        return call(function, *arguments)

    monkeypatch.setattr(opened, "in_child", limited)
    monkeypatch.setattr(records, "BATCH_ROWS", 3)
    *raws, last = read(write(tmp_path / "a.parquet", list("abcdefghij")))
    assert [raw.text for raw in raws] == list("abcdefg")
    assert (last.record, last.problem) == ("rows from 8 to 10", "cannot be read (too much)")


@pytest.mark.slow
def test_a_text_that_a_thousand_rows_share_is_read_for_each(tmp_path):
    texts = ["a" * 4_000_000] * 130  # half a GB as Arrow has it and half as Python does, some kB in the file
    path = write(tmp_path / "a.parquet", texts)
    assert path.stat().st_size < 100_000
    assert [len(raw.text) for raw in read(path)] == [4_000_000] * 130


@pytest.mark.slow
def test_a_text_that_is_far_too_large_is_put_aside_with_its_group_alone(tmp_path):
    table = pyarrow.table({"text": pyarrow.array(["a", "b" * 400_000_000, "c", "d"])})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=2)
    bad, third, fourth = read(path)
    assert (third.text, fourth.text, fourth.record) == ("c", "d", "row 4")
    assert bad.dropped == "could not be read" and bad.record == "rows from 1 to 2"


def test_a_page_that_lies_about_its_size_ends_no_more_than_its_group(tmp_path):
    path = write(tmp_path / "a.parquet", [f"row {number}" for number in range(100)], row_group_size=50)
    data = path.read_bytes()
    for place in range(4, len(data) - 8, 7):
        path.write_bytes(data[:place] + b"\xff\xff\x7f" + data[place + 3 :])
        raws = read(path)
        assert raws and all(raw.dropped or isinstance(raw.text, str) for raw in raws)


@pytest.mark.parametrize("texts", [[], [None], [""]])
def test_an_empty_file_is_no_error(tmp_path, texts):
    assert [raw.text for raw in read(write(tmp_path / "a.parquet", pyarrow.array(texts, pyarrow.string())))] == [
        ""
    ] * len(texts)


def test_the_file_at_a_path_may_change(tmp_path):
    for text in ("first", "second"):
        assert [raw.text for raw in read(write(tmp_path / "a.parquet", [text]))] == [text]
