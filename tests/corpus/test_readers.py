"""Every kind of file gives its documents, whole, in part or in ranges; what is broken is a document that says so."""

import bz2
import dataclasses
import errno
import gzip
import io
import itertools
import json
import lzma
import os
import re
import time
from pathlib import Path
from unittest.mock import Mock

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus.document import Raw
from tpullm.corpus.files import opened, pages, readers
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError


def read(path, kind="parquet", **settings):
    return list(readers.read(File(path, kind, path.stat().st_size), Source("s", kind, str(path), **settings)))


def wrong(path, raws):
    """The one document that cannot be read, as the user is told of it."""
    (raw,) = [raw for raw in raws if raw.problem]
    assert raw.dropped in ("could not be read", "broken record", "too large") and raw.text == ""
    told = readers.described(path, raw)
    assert told.startswith(f"{path}: ") and "\n" not in told
    return told.removeprefix(f"{path}: ")


def test_text_is_kept_as_it_is_but_for_line_ends_and_the_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf  \xe6\x9c\xac\r\n\r\nx \t y\rz")
    assert read(path, "text") == [Raw("  本\n\nx \t y\nz")]
    assert read(path, "code") == [Raw("  本\n\nx \t y\nz", "code")]  # whatever the source says
    path.write_bytes("吾輩は猫である。".encode("euc_jp"))
    assert read(path, "markdown") == [Raw("吾輩は猫である。", "ja", encoding="EUC-JP")]
    path.write_bytes(b"")
    for kind in ("text", "markdown", "code", "html"):
        assert [raw.text for raw in read(path, kind)] == [""]
    assert read(path, "jsonl") == []


def part_of(path, kind, most):
    return list(readers.read(File(path, kind, most, is_part=True), Source("s", kind, str(path))))


@given(text=st.text(st.sampled_from("aé本🙂\n")), most=st.integers(1, 60))
def test_a_part_of_a_file_ends_at_a_line_or_else_at_a_character(tmp_path_factory, text, most):
    path = tmp_path_factory.mktemp("part") / "a.txt"
    path.write_text(text, encoding="utf-8")
    (raw,) = part_of(path, "text", most)
    part, size, data = raw.text, len(raw.text.encode()), text.encode()
    assert text.startswith(part) and size <= most
    if size < min(most, len(data)):
        assert part.endswith("\n") or most - size < 4
    if b"\n" in data[:most] and most < len(data):
        assert part.endswith("\n")


def test_a_part_of_a_file_is_counted_by_its_text(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"line\n" * 1000))
    assert part_of(path, "text", 52) == [Raw("line\n" * 10)]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "本本"}\n' * 9 + "broken", encoding="utf-8")
    assert [raw.text for raw in part_of(path, "jsonl", 13)] == ["本本"] * 3
    raws = part_of(path, "jsonl", 1000)
    assert len(raws) == 10 and wrong(path, raws).startswith("line 10 is not JSON")


COMPRESSED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": opened.zstandard().compress}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_compressed_file_that_expands_without_bound_is_cut_off_and_named(tmp_path, monkeypatch, suffix, kind):
    monkeypatch.setattr(opened, "EXPANDED_BYTES", 1 << 17)
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(COMPRESSED[suffix](b" " * (1 << 20)))
    assert wrong(path, read(path, kind)).startswith("is more than 200 times as large as its file; unpack it")
    monkeypatch.setattr(opened, "EXPANDED_TIMES", 1 << 20)
    assert read(path, kind) == ([Raw(" " * (1 << 20))] if kind == "text" else [])


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_many_frames_are_one_file_and_of_a_broken_one_the_beginning_is_read(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    frames = [COMPRESSED[suffix](f'{{"text": "{name}"}}\n'.encode()) for name in "abc"]
    path.write_bytes(b"".join(frames))
    assert [raw.text for raw in read(path, "jsonl")] == ["a", "b", "c"]
    path.write_bytes(b"".join(frames)[:-3])
    raws = read(path, "jsonl")
    assert [raw.text for raw in raws][:2] == ["a", "b"] and wrong(path, raws).startswith("cannot be read")
    path.write_bytes(b"no frame at all")
    assert wrong(path, read(path, "jsonl")).startswith("cannot be read")


def test_a_full_disk_is_no_broken_file_but_one_that_may_not_be_read_is(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")
    errors = [OSError(number, os.strerror(number)) for number in (errno.EACCES, errno.ENOSPC)]
    monkeypatch.setattr(opened, "next_line", Mock(side_effect=errors))
    assert wrong(path, read(path, "text")).startswith("cannot be read (Permission denied)")
    with pytest.raises(OSError, match="No space left"):
        read(path, "text")


TEXTS = [
    "---\nA paragraph between two rulers.\n---\nMore.\n", "---\n", "---\n# A heading\n---\n", "----\na: b\n----\n",
    "---\nDear all: we\nmeet at noon.\n---\n", "---\nkey: value without an end\n", "---\na:\nText.\n---\n",
    "text <!-- without end",
]  # fmt: skip
MATTERS = ["題名: 本\n...", "# comment\ntitle: x\ntags:\n- a\n- b\n\n---"]
MATTERS.append('"key": |\n  many\n\n  lines\nlist: [\n  a,\n]\n---')


@pytest.mark.parametrize("source", TEXTS)
def test_markdown_keeps_what_is_text_and_loses_front_matter(source):
    found = [pages.markdown_to_text(text) for text in (source, *(f"---\n{matter}\n{source}" for matter in MATTERS))]
    assert found == [source] * 4


@given(st.lists(st.sampled_from(["<!--", "-->", "-", "<!", ">", "a", "\n"]), max_size=30).map("".join))
def test_comments_are_what_the_pattern_says(source):
    assert pages.markdown_to_text(source) == re.sub("<!--.*?-->", "", source, flags=re.DOTALL)


def test_markdown_takes_time_by_its_length():
    for unit in ("<!--", "<!-- -->", "---\n", "a: b\n", "<!", "-"):
        text = "---\n" + unit * (1_000_000 // len(unit))
        begin = time.thread_time()
        pages.markdown_to_text(text)
        assert time.thread_time() - begin < 2  # 0.05 s; by the pattern `<!--.*?-->`, 160 kB took 48 s


def read_in_ranges(path, kind, cuts):
    ranges = itertools.pairwise([0, *sorted(set(cuts)), None])
    files = (File(path, kind, 1, start=start, stop=stop) for start, stop in ranges)
    return [raw for file in files for raw in readers.read(file, Source("s", kind, str(path)))]


LINES = st.lists(st.text(st.sampled_from("aé本🙂\r "), max_size=12))
TEXT = st.text(st.sampled_from("aé本🙂\n"), max_size=90)


@settings(max_examples=50)
@given(lines=LINES, cuts=st.lists(st.integers(1, 90)), end=st.booleans())
def test_ranges_of_json_lines_give_each_record_once(tmp_path_factory, lines, cuts, end):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    data = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines) + "\n" * end
    path.write_bytes(data.encode())
    for found in (read_in_ranges(path, "jsonl", cuts), read(path, "jsonl")):
        assert [raw.text for raw in found] == [line.replace("\r", "\n") for line in lines]


@settings(max_examples=60)
@given(TEXT, st.lists(st.integers(1, 200)), st.integers(4, 40), st.sampled_from(["utf-8", "utf-16"]))
def test_ranges_and_pieces_of_text_give_each_character_once(tmp_path_factory, text, cuts, piece, charset):
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_text(text, charset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", piece)
        for found in (read_in_ranges(path, "text", cuts), read_in_ranges(path, "text", [])):
            assert "".join(raw.text for raw in found) == text
            assert all(len(raw.text.encode()) <= 3 * piece + 3 and not raw.dropped for raw in found)


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 3000)))
def test_ranges_of_parquet_give_each_row_once(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("ranges") / "a.parquet"
    texts = [f"row {number}" for number in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    found = read_in_ranges(path, "parquet", cuts)
    assert [raw.text for raw in found] == texts
    assert [raw.record for raw in found] == [f"row {number}" for number in range(1, 51)]


def test_a_line_without_end_is_not_read_to_its_end_by_each_range():
    file = io.BytesIO(b"x" * (1 << 22))
    assert list(opened.lines(file, 1 << 17, 1 << 18)) == [] and file.tell() < 1 << 19


def test_a_share_or_a_number_may_be_bad_of_which_three_are_named_that_are_not_alike():
    raw = Raw(dropped="broken record", record="line 2", problem="is not JSON (Expecting value)")
    told = "1 of 3 documents cannot be read: a\\n.jsonl: line 2 is not JSON (Expecting value); correct or remove it, or"
    with pytest.raises(UserError, match=f"^corpus.sources: s: {re.escape(told)} put it aside with max_bad: 1 for this"):
        readers.check(Source("s", "jsonl"), 1, 3, [readers.described(Path("a\n.jsonl"), raw)])
    for max_bad, bad, documents in ((0.001, 1, 999), (0, 1, 10**9), (1, 2, 10**9), (0.5, 3, 5)):
        source = Source("s", "jsonl", max_bad=max_bad)
        with pytest.raises(UserError, match=f"s: {bad:,} of {documents:,} documents cannot be read: a"):
            readers.check(source, bad, documents, ["a"])
        readers.check(source, bad - 1, documents, ["a"])
        readers.check(dataclasses.replace(source, max_bad=bad), bad, documents, ["a"])
    first = [*(f"a: line {number}" for number in range(9)), "b: c", "b: d", "b: e"]
    with pytest.raises(UserError, match="read: a: line 0; b: c; b: d; and 1,997 more; correct or remove them"):
        readers.check(Source("s", "jsonl", max_bad=10), 2000, 3000, first)
