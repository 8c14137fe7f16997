"""Every kind of file gives its documents; a broken one is named, with the line."""

import bz2
import gzip
import io
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from tpullm.corpus import readers, warc
from tpullm.corpus.document import Raw
from tpullm.corpus.source_files import File
from tpullm.errors import UserError
from tpullm.recipe.schema import Source

PAGE = """<html><head><title>天気</title></head><body><nav><a href="/">ホーム</a></nav>
<article><h1>今日の天気</h1><p>今日はいい天気ですね。私はリンゴを食べるのが好きです。明日は雨が降るでしょう。</p>
<p>毎日学校で本を読みます。友だちと一緒に帰ります。</p></article></body></html>"""


def read(path, kind, **settings):
    return list(readers.read(File(path, kind, path.stat().st_size), Source("s", kind, str(path), **settings)))


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
    with pytest.raises(UserError, match="line 10 is not JSON"):
        read_part(path, "jsonl", 1000)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_compressed_file_that_expands_without_bound_is_named(tmp_path, monkeypatch, suffix, compress, kind):
    monkeypatch.setattr(readers, "EXPANDED_BYTES", 1 << 20, raising=False)
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(compress(b" " * (8 << 20)))
    with pytest.raises(UserError, match=f"a.{kind}{suffix}: is more than 200 times as large as its file; unpack it"):
        read(path, kind)
    path.write_bytes(compress(b" " * (1 << 20)))
    assert read(path, kind) == ([Raw(" " * (1 << 20))] if kind == "text" else [])
    monkeypatch.setattr(readers, "EXPANDED_TIMES", 1 << 20)
    path.write_bytes(compress(b" " * (8 << 20)))
    assert len(read(path, kind)) == (kind == "text")


def test_zstandard_is_read(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write('{"text": "リンゴ"}\n'.encode())
    assert [raw.text for raw in read(path, "jsonl")] == ["リンゴ"]


def test_a_compressed_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="a.jsonl.gz: cannot be read"):
        read(path, "jsonl")


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
        ('{"text": "x"', "line 2 is not JSON"),
        ("[1]", "line 2 has no 'text': it is not an object"),
        ('{"body": "x"}', "line 2 has no 'text': its keys are body"),
        ('{"text": 5}', "line 2: 'text' is not text but int"),
    ],
)
def test_a_wrong_line_of_json_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=message) as error:
        read(path, "jsonl")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["一", None, "三"], "n": [1, 2, 3]}), path)
    assert [raw.text for raw in read(path, "parquet")] == ["一", "", "三"]
    with pytest.raises(UserError, match="no column 'body': its columns are text, n"):
        read(path, "parquet", text_key="body")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is not Parquet or is cut off"):
        read(path, "parquet")


def _warc(path):
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for mime, body in (("text/html; charset=shift_jis", PAGE.encode("shift_jis")), ("image/png", b"\x89PNG")):
            headers = StatusAndHeaders("200 OK", [("Content-Type", mime)], protocol="HTTP/1.0")
            writer.write_record(
                writer.create_warc_record("http://example.com/", "response", io.BytesIO(body), http_headers=headers)
            )
        writer.write_record(
            writer.create_warc_record(
                "http://example.com/", "conversion", io.BytesIO("本を読む".encode()), warc_content_type="text/plain"
            )
        )


def test_warc_gives_pages_and_extracted_text(tmp_path):
    path = tmp_path / "a.warc.gz"
    _warc(path)
    page, image, converted = read(path, "warc")
    assert "私はリンゴを食べるのが好きです。" in page.text
    assert image.dropped == "not a page" and converted.text == "本を読む"


def test_a_page_of_a_crawl_that_is_far_too_large_is_dropped(tmp_path, monkeypatch):
    path = tmp_path / "a.warc.gz"
    _warc(path)
    monkeypatch.setattr(warc, "MOST_PAGE_BYTES", 100, raising=False)
    page, image, converted = read(path, "warc")
    assert page.dropped == "a page of more than 64 MiB" and image.dropped and converted.text == "本を読む"


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_warc_that_is_cut_off_is_named(tmp_path, kept):
    path = tmp_path / "a.warc.gz"
    _warc(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UserError, match="a.warc.gz: is not WARC or is cut off"):
        read(path, "warc")


def test_what_is_no_warc_is_named(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(b"not a warc file at all\n" * 10)
    with pytest.raises(UserError, match="is not WARC or is cut off"):
        read(path, "warc")


def test_code_is_code_whatever_the_source_says(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("print('本')\n", encoding="utf-8")
    assert [(raw.text, raw.language) for raw in read(path, "code")] == [("print('本')\n", "code")]
