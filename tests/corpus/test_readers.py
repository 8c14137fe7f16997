"""Every kind of file gives its documents, whole, in part or in ranges; what is broken is a document that says so."""

import bz2
import errno
import gzip
import json
import lzma
import os
import random
import re
import time
from pathlib import Path

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

PAGE = """<html><head><title>天気</title></head><body><nav><a href="/">ホーム</a></nav>
<article><h1>今日の天気</h1><p>今日はいい天気ですね。私はリンゴを食べるのが好きです。明日は雨が降るでしょう。</p>
<p>毎日学校で本を読みます。友だちと一緒に帰ります。</p></article></body></html>"""


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
    assert read(path, "text")[0].text == "  本\n\nx \t y\nz"


SOSEKI = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\r\nカタカナもある。\n" * 3


@pytest.mark.parametrize(
    ("charset", "name"), [("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16"), ("utf-8", "")]
)
@pytest.mark.parametrize("kind", ["text", "markdown"])
def test_japanese_in_an_old_encoding_is_read_and_told(tmp_path, charset, name, kind):
    path = tmp_path / "a.txt"
    path.write_bytes(SOSEKI.encode(charset))
    (raw,) = read(path, kind)
    assert (raw.text, raw.encoding, raw.dropped) == (SOSEKI.replace("\r\n", "\n"), name, "")


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        ("나는 사과를 먹는 것을 좋아한다. 오늘은 날씨가 좋다.\n", "euc_kr"),
        ("我喜欢吃苹果。今天天气很好。\n", "gb18030"),
        ("Où est-il passé, à côté ?\n", "latin-1"),
        ("Ёжик в тумане, где ты?\n", "cp1251"),
    ],
)
def test_what_is_not_surely_japanese_is_not_guessed(tmp_path, text, charset):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(charset) * 20)
    assert [raw.dropped for raw in read(path, "text")] == ["not UTF-8"]


def read_part(path, kind, most):
    return [raw.text for raw in readers.read(File(path, kind, most, is_part=True), Source("s", kind, str(path)))]


@given(text=st.text(st.sampled_from("aé本🙂\n")), most=st.integers(1, 60))
def test_a_part_of_a_file_ends_at_a_line_or_else_at_a_character(tmp_path_factory, text, most):
    path = tmp_path_factory.mktemp("part") / "a.txt"
    path.write_text(text, encoding="utf-8")
    (part,) = read_part(path, "text", most)
    size, data = len(part.encode()), text.encode()
    assert text.startswith(part) and size <= most
    if size < min(most, len(data)):
        assert part.endswith("\n") or most - size < 4
    if b"\n" in data[:most] and most < len(data):
        assert part.endswith("\n")


def test_a_part_of_a_compressed_file_counts_its_text(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"line\n" * 1000))
    assert read_part(path, "text", 52) == ["line\n" * 10]


def test_a_part_of_many_documents_is_the_first_of_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "本本"}\n' * 9 + "broken", encoding="utf-8")
    assert read_part(path, "jsonl", 13) == ["本本"] * 3
    raws = list(readers.read(File(path, "jsonl", 1000, is_part=True), Source("s", "jsonl", str(path))))
    assert len(raws) == 10 and wrong(path, raws).startswith("line 10 is not JSON")


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_compressed_file_that_expands_without_bound_is_cut_off_and_named(
    tmp_path, monkeypatch, suffix, compress, kind
):
    monkeypatch.setattr(opened, "EXPANDED_BYTES", 1 << 20)
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(compress(b" " * (8 << 20)))
    assert wrong(path, read(path, kind)).startswith("is more than 200 times as large as its file; unpack it")
    path.write_bytes(compress(b" " * (1 << 20)))
    assert read(path, kind) == ([Raw(" " * (1 << 20))] if kind == "text" else [])
    monkeypatch.setattr(opened, "EXPANDED_TIMES", 1 << 20)
    path.write_bytes(compress(b" " * (8 << 20)))
    assert len(read(path, kind)) == (kind == "text")


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("compress", [lambda data: opened.zstandard().compress(data), gzip.compress])
def test_many_frames_are_one_file(tmp_path, members, compress):
    path = tmp_path / ("a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst")
    path.write_bytes(compress('{"text": "リンゴ"}\n'.encode()) * members)
    assert [raw.text for raw in read(path, "jsonl")] == ["リンゴ"] * members
    for broken in (path.read_bytes()[:-3], b"no frame at all"):
        path.write_bytes(broken)
        assert len(read(path, "jsonl")) <= members + 1 and wrong(path, read(path, "jsonl")).startswith("cannot be read")


def test_an_empty_file_is_an_empty_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    for kind in ("text", "markdown", "code", "html"):
        assert [raw.text for raw in read(path, kind)] == [""]
    assert read(path, "jsonl") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_no_broken_file_but_one_that_may_not_be_read_is(tmp_path, monkeypatch, number):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(opened, "next_line", refused)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="No space left"):
            read(path, "text")
    else:
        assert wrong(path, read(path, "text")).startswith("cannot be read (Permission denied)")


def test_a_compressed_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    text = "".join(json.dumps({"text": random.Random(line).random()}) + "\n" for line in range(2_000))
    path.write_bytes(gzip.compress(text.replace(": ", ': "').replace("}", '"}').encode())[:-20])
    raws = read(path, "jsonl")
    assert len(raws) > 1_000 and raws[0].text  # what was before it is read
    assert wrong(path, raws).startswith("cannot be read (Compressed file ended")


@pytest.mark.parametrize(
    "source",
    [
        "---\nA paragraph between two rulers.\n---\nMore.\n",
        "---\n",
        "---\n# A heading\n---\n",
        "---\nDear all: we\nmeet at noon.\n---\n",
        "---\nkey: value without an end\n",
        "----\na: b\n----\n",
        "text <!-- without end",
    ],
)
def test_markdown_keeps_what_is_text(tmp_path, source):
    path = tmp_path / "a.md"
    path.write_text(source, encoding="utf-8")
    assert read(path, "markdown")[0].text == source


@pytest.mark.parametrize(
    "matter",
    [
        "title: x\n",
        "# comment\ntitle: x\ntags:\n- a\n- b\n\n",
        '"key": |\n  many\n\n  lines\nlist: [\n  a,\n]\n',
        "題名: 本\n",
    ],
)
@pytest.mark.parametrize("end", ["---", "..."])
def test_markdown_loses_front_matter(tmp_path, matter, end):
    path = tmp_path / "a.md"
    path.write_text(f"---\n{matter}{end}\n---\ntext: a\n", encoding="utf-8")
    assert read(path, "markdown")[0].text == "---\ntext: a\n"


@given(st.lists(st.sampled_from(["<!--", "-->", "-", "<!", ">", "a", "\n"]), max_size=30).map("".join))
def test_comments_are_what_the_pattern_says(source):
    assert pages.markdown_to_text(source) == re.sub("<!--.*?-->", "", source, flags=re.DOTALL)


def test_markdown_takes_time_by_its_length(tmp_path):
    for unit in ("<!--", "<!-- -->", "---\n", "a: b\n", "<!", "-"):
        text = "---\n" + unit * (1_000_000 // len(unit))
        begin = time.process_time()
        pages.markdown_to_text(text)
        assert time.process_time() - begin < 2  # 0.05 s; by the pattern `<!--.*?-->`, 160 kB took 48 s


@pytest.mark.parametrize("charset", ["utf-8", "shift_jis", "euc-jp"])
def test_html_gives_its_text_in_whatever_encoding_it_declares(tmp_path, charset):
    path = tmp_path / "a.html"
    path.write_bytes(PAGE.replace("<head>", f'<head><meta charset="{charset}">').encode(charset))
    text = read(path, "html")[0].text
    assert "私はリンゴを食べるのが好きです。" in text and "<" not in text


def test_code_is_code_whatever_the_source_says(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("print('本')\n", encoding="utf-8")
    assert [(raw.text, raw.language) for raw in read(path, "code")] == [("print('本')\n", "code")]


def read_in_ranges(path, kind, cuts):
    edges = [0, *sorted(set(cuts)), None]
    source = Source("s", kind, str(path))
    return [
        raw
        for start, stop in zip(edges, edges[1:], strict=False)
        for raw in readers.read(File(path, kind, 1, start=start, stop=stop), source)
    ]


LINE = st.text(st.sampled_from("aé本🙂\r "), max_size=12)


@settings(max_examples=50)
@given(lines=st.lists(LINE), cuts=st.lists(st.integers(1, 90)), end=st.booleans())
def test_ranges_of_json_lines_give_each_record_once(tmp_path_factory, lines, cuts, end):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    data = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines) + "\n" * end
    path.write_bytes(data.encode())
    whole = [raw.text for raw in readers.read(File(path, "jsonl", 1), Source("s", "jsonl", str(path)))]
    assert [raw.text for raw in read_in_ranges(path, "jsonl", cuts)] == whole == [x.replace("\r", "\n") for x in lines]


@settings(max_examples=50)
@given(
    text=st.text(st.sampled_from("aé本🙂\n"), max_size=90), cuts=st.lists(st.integers(1, 200)), piece=st.integers(4, 40)
)
def test_ranges_and_pieces_of_text_give_each_character_once(tmp_path_factory, text, cuts, piece):
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", piece)
        for found in (read_in_ranges(path, "text", cuts), read_in_ranges(path, "text", [])):
            assert "".join(raw.text for raw in found) == text
            assert all(len(raw.text.encode()) <= 3 * piece + 3 for raw in found)


@pytest.mark.parametrize("piece", [1 << 24, 20])
def test_ranges_of_utf_16_are_read_once(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(readers, "PIECE_BYTES", piece)
    path = tmp_path / "a.txt"
    path.write_text("吾輩は猫である。\n" * 9, encoding="utf-16")
    found = read_in_ranges(path, "text", [7, 50])
    assert "".join(raw.text for raw in found) == "吾輩は猫である。\n" * 9
    assert {raw.encoding for raw in found} == {"UTF-16"} and (len(found) == 1) == (piece > 200)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 3000)))
def test_ranges_of_parquet_give_each_row_once(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("ranges") / "a.parquet"
    texts = [f"row {number}" for number in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    found = read_in_ranges(path, "parquet", cuts)
    assert [raw.text for raw in found] == texts
    assert [raw.record for raw in found] == [f"row {number}" for number in range(1, 51)]


@pytest.mark.parametrize(
    ("max_bad", "bad", "documents", "fine"),
    [
        (0.001, 0, 0, True),
        (0.001, 1, 999, False),
        (0.001, 1, 1000, True),
        (0, 1, 10**9, False),
        (-1, 0, 5, True),
        (1, 1, 1, True),
        (1, 2, 10**9, False),
        (0.5, 3, 5, False),
    ],
)
def test_a_share_or_a_number_of_documents_may_be_bad(max_bad, bad, documents, fine):
    source = Source("s", "jsonl", max_bad=max_bad)
    if fine:
        readers.check(source, bad, documents, ["a"])
        return
    with pytest.raises(UserError, match=f"s: {bad:,} of {documents:,} documents cannot be read: a"):
        readers.check(source, bad, documents, ["a"])


def test_a_small_file_with_one_broken_line_says_so():
    raw = Raw(dropped="broken record", record="line 2", problem="is not JSON (Expecting value)")
    with pytest.raises(UserError) as error:
        readers.check(Source("s", "jsonl"), 1, 3, [readers.described(Path("a\n.jsonl"), raw)])
    assert str(error.value) == (
        "corpus.sources: s: 1 of 3 documents cannot be read: a\\n.jsonl: line 2 is not JSON (Expecting value); correct "
        "or remove it, or put it aside with max_bad: 1 for this source (it is 0.001)"
    )


def test_three_are_named_that_are_not_alike_and_the_others_counted():
    first = ["a: line 1", "a: line 2", "a: line 3"]
    with pytest.raises(UserError, match="read: a: line 1; a: line 2; a: line 3; correct or remove them, or put them"):
        readers.check(Source("s", "jsonl"), 3, 2999, first)
    first = [*(f"a: line {number}" for number in range(9)), "b: c", "b: d", "b: e"]
    with pytest.raises(UserError, match="read: a: line 0; b: c; b: d; and 1,997 more; correct or remove them"):
        readers.check(Source("s", "jsonl", max_bad=10), 2000, 3000, first)
