"""Every kind of file gives its documents; what is broken is a document that says so, with the line."""

import bz2
import errno
import gzip
import json
import lzma
import random
import re
import time

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.document import Raw
from tpullm.corpus.files import opened, pages, readers
from tpullm.corpus.files.source_files import File
from tpullm.corpus.filters import verdicts
from tpullm.recipe.schema import Source

PAGE = """<html><head><title>天気</title></head><body><nav><a href="/">ホーム</a></nav>
<article><h1>今日の天気</h1><p>今日はいい天気ですね。私はリンゴを食べるのが好きです。明日は雨が降るでしょう。</p>
<p>毎日学校で本を読みます。友だちと一緒に帰ります。</p></article></body></html>"""


def read(path, kind, **settings):
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


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read(tmp_path, suffix, compress):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress('{"text": "リンゴ"}\n'.encode()))
    assert [raw.text for raw in read(path, "jsonl")] == ["リンゴ"]


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
        ("Ёжик в тумане, где ты?\n", "koi8-r"),
        ("Ёжик в тумане, где ты?\n", "cp1251"),
        ("我喜歡吃蘋果。今天天氣很好。\n", "big5"),
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
    path.write_bytes(path.read_bytes()[:-3])
    assert len(read(path, "jsonl")) <= members + 1 and wrong(path, read(path, "jsonl")).startswith("cannot be read")


def test_a_zstandard_file_of_random_bytes_is_named(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"no frame at all")
    assert wrong(path, read(path, "text")).startswith("cannot be read")


def test_an_empty_file_is_an_empty_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    for kind in ("text", "markdown", "code", "html"):
        assert [raw.text for raw in read(path, kind)] == [""]
    assert read(path, "jsonl") == []


def test_a_full_disk_is_no_broken_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(opened, "next_line", full)
    with pytest.raises(OSError, match="No space left"):
        read(path, "text")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(opened, "next_line", refused)
    assert wrong(path, read(path, "text")).startswith("cannot be read (Permission denied)")


def test_a_compressed_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    text = "".join(json.dumps({"text": random.Random(line).random()}) + "\n" for line in range(20_000))
    path.write_bytes(gzip.compress(text.replace(": ", ': "').replace("}", '"}').encode())[:-20])
    raws = read(path, "jsonl")
    assert len(raws) > 10_000 and raws[0].text  # what was before it is read
    assert wrong(path, raws).startswith("cannot be read (Compressed file ended")


@pytest.mark.parametrize(
    "source",
    [
        "---\nA paragraph between two rulers.\n---\nMore.\n",
        "---\n",
        "---\n---\nx",
        "---\n# A heading\n---\n",
        "---\nまえがき\n---\n本\n",
        "---\nDear all: we\nmeet at noon.\n---\n",
        "---\nkey: value without an end\n",
        "----\na: b\n----\n",
        "text <!-- without end",
        "--> <!",
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
        text = "---\n" + unit * (4_000_000 // len(unit))
        begin = time.process_time()
        pages.markdown_to_text(text)
        assert time.process_time() - begin < 5  # 0.2 s; by the pattern `<!--.*?-->`, 160 kB took 48 s


def test_markdown_loses_front_matter_and_comments_only(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("---\ntitle: x\n---\n# 本\n\n<!-- hidden\n -->*a* `b`\n", encoding="utf-8")
    assert read(path, "markdown")[0].text == "# 本\n\n*a* `b`\n"


@pytest.mark.parametrize("charset", ["utf-8", "shift_jis", "euc-jp"])
def test_html_gives_its_text_in_whatever_encoding_it_declares(tmp_path, charset):
    path = tmp_path / "a.html"
    path.write_bytes(PAGE.replace("<head>", f'<head><meta charset="{charset}">').encode(charset))
    text = read(path, "html")[0].text
    assert "私はリンゴを食べるのが好きです。" in text and "<" not in text


def test_a_short_page_gives_all_its_text(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<p>本を読む</p>", encoding="utf-8")
    assert read(path, "html")[0].text.strip() == "本を読む"


def test_bytes_that_are_no_utf8_are_counted_not_guessed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("天気".encode("euc-jp"))
    assert [raw.dropped for raw in read(path, "text")] == ["not UTF-8"]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"body": "one"}', b"", b'{"body": null}', b'{"body": "\xff"}', json.dumps({"body": "二\r\n"}).encode()]
    path.write_bytes(b"\n".join(lines))
    raws = read(path, "jsonl", text_key="body")
    assert [(raw.text, raw.dropped) for raw in raws] == [("one", ""), ("", ""), ("", "not UTF-8"), ("二\n", "")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "line 2 is not JSON (Expecting ',' delimiter)"),
        ("[1]", "line 2 has no 'text': it is not an object"),
        ('{"body": "x"}', "line 2 has no 'text': its keys are body"),
        ('{"text": 5}', "line 2 has no text in 'text' but int"),
        ("[" * 500_000, "line 2 is not JSON (it is nested too deep)"),
        ('{"text": ' + "1" * 5000 + "}", "line 2 is not JSON (Exceeds the limit"),
    ],
)
def test_a_wrong_line_of_json_is_named_and_the_others_are_read(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + '\n{"text": "too"}\n')
    raws = read(path, "jsonl")
    assert [raw.text for raw in raws] == ["fine", "", "too"]
    assert wrong(path, raws).startswith(message)


@pytest.mark.parametrize("end", [b"", b"\n", b'\n{"text": "b"}'])
@pytest.mark.parametrize("length", [63, 64, 65, 1 << 20])
def test_a_line_without_end_is_cut(tmp_path, monkeypatch, length, end):
    monkeypatch.setattr(opened, "MOST_RECORD_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"a" * (length - 12) + b'"}' + end)
    raws = read(path, "jsonl")
    assert [bool(raw.problem) for raw in raws] == [
        length + (end != b"") > 64 or not end and length == 64,
        *[False] * (len(end) > 1),
    ]
    assert raws[-1].text == ("b" if len(end) > 1 else "" if raws[0].problem else "a" * (length - 12))


def test_a_line_in_another_encoding_is_dropped_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "一"}'.encode(), '{"text": "二"}'.encode("cp932"), '{"text": "三"}'.encode()]
    path.write_bytes(b"\n".join(lines))
    assert [(raw.text, raw.dropped, raw.record) for raw in read(path, "jsonl")] == [
        ("一", "", "line 1"),
        ("", "not UTF-8", "line 2"),
        ("三", "", "line 3"),
    ]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["一", None, "三"], "n": [1, 2, 3]}), path)
    raws = read(path, "parquet")
    assert [(raw.text, raw.record) for raw in raws] == [("一", "row 1"), ("", "row 2"), ("三", "row 3")]
    told = wrong(path, read(path, "parquet", text_key="body"))
    assert told.startswith("has no column 'body': its columns are text, n; set text_key")
    path.write_bytes(path.read_bytes()[:100])
    assert wrong(path, read(path, "parquet")).startswith("is not Parquet or is cut off")


def test_a_row_of_parquet_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [5]}), path)
    assert wrong(path, read(path, "parquet")).startswith("row 1 has no text in 'text' but int")
    broken = pyarrow.array([b"fine", b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    fine, other = read(path, "parquet")
    assert fine.text == "fine" and verdicts.unreadable(other.text) == "broken encoding"


def test_code_is_code_whatever_the_source_says(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("print('本')\n", encoding="utf-8")
    assert [(raw.text, raw.language) for raw in read(path, "code")] == [("print('本')\n", "code")]
