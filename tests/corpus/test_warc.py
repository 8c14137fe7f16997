"""What is read of a crawl: its pages, and nothing of a broken or hostile record but its number."""

import gzip
import io
import time
import zlib

import brotli
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from tpullm.corpus.files import opened, pages, readers, warc
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import Source

PAGE = """<html><head><title>天気</title></head><body><nav><a href="/">ホーム</a></nav>
<article><h1>今日の天気</h1><p>今日はいい天気ですね。私はリンゴを食べるのが好きです。明日は雨が降るでしょう。</p>
<p>毎日学校で本を読みます。友だちと一緒に帰ります。</p></article></body></html>"""
UTF_8_PAGE = PAGE.encode()
SAID = "私はリンゴを食べるのが好きです。"


def read(path):
    return list(readers.read(File(path, "warc", path.stat().st_size), Source("s", "warc", str(path))))


def answer(body=UTF_8_PAGE, status="200 OK", mime="text/html; charset=utf-8", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {mime}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def record(content, kind="response", url="http://example.com/", length=None, mime="", version="WARC/1.0"):
    lines = [version, f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2026-01-02T03:04:05Z"]
    lines += [f"Content-Type: {mime}"] if mime else []
    lines += [f"Content-Length: {len(content) if length is None else length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n\r\n"


def read_records(tmp_path, *records, compress=b"".join):
    path = tmp_path / "a.warc"
    path.write_bytes(compress(records))
    return read(path)


def test_a_file_of_warcio_gives_pages_and_extracted_text(tmp_path):
    path = tmp_path / "a.warc.gz"
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for mime, body in (("text/html; charset=shift_jis", PAGE.encode("shift_jis")), ("image/png", b"\x89PNG")):
            headers = StatusAndHeaders("200 OK", [("Content-Type", mime)], protocol="HTTP/1.0")
            content = {"payload": io.BytesIO(body), "http_headers": headers}
            writer.write_record(writer.create_warc_record("http://example.com/", "response", **content))
        said = {"warc_headers_dict": {"WARC-Identified-Content-Language": "jpn"}, "warc_content_type": "text/plain"}
        body = io.BytesIO("本を読む".encode())
        writer.write_record(writer.create_warc_record("http://example.com/", "conversion", body, **said))
    page, image, converted = read(path)
    assert SAID in page.text and page.url == "http://example.com/" and page.date[:2] == "20"
    assert page.record.startswith("record 1 (<urn:uuid:") and converted.record.startswith("record 3 (")
    assert image.dropped == "not a page" and (converted.text, converted.language) == ("本を読む", "ja")


def zst(records):
    return b"".join(map(opened.zstandard().compress, records))


def zst_with_dictionary(records):
    zstd = opened.zstandard()
    dictionary = zstd.train_dict([record(answer(PAGE.encode() + bytes([n]))) for n in range(100)], 2000)
    frames = b"".join(zstd.compress(one, zstd_dict=dictionary) for one in records)
    content = zstd.compress(dictionary.dict_content)
    return opened.DICTIONARY + len(content).to_bytes(4, "little") + content + frames


def gz(records):
    return b"".join(map(gzip.compress, records))


@pytest.mark.parametrize(
    "compress", [b"".join, gz, lambda records: gzip.compress(b"".join(records)), zst, zst_with_dictionary]
)
def test_a_crawl_is_read_however_it_is_compressed(tmp_path, compress):
    raws = read_records(tmp_path, record(b"a: b", "warcinfo"), record(answer()), record(answer()), compress=compress)
    assert [SAID in raw.text for raw in raws] == [True, True]
    assert [raw.record for raw in raws] == ["record 2", "record 3"]


def test_what_is_no_page_by_its_type_is_no_document(tmp_path):
    kinds = ["warcinfo", "request", "metadata", "revisit", "continuation", "new-type"]
    records = [record(b"GET / HTTP/1.1\r\n\r\n", kind) for kind in kinds]
    dns = record(b"20260101\r\nexample.com. A 1.2.3.4", url="dns:example.com", mime="text/dns")
    raws = read_records(tmp_path, *records, dns, record(b"", "revisit"), record(answer()))
    assert [raw.record for raw in raws] == ["record 9"]


@pytest.mark.parametrize(
    ("data", "dropped"),
    [
        (record(answer(status="203")), ""),
        (record(answer(status="301 Moved")), "no success"),
        (record(answer(status="503")), "no success"),
        (record(answer(mime="image/png")), "not a page"),
        (record(PAGE.encode("euc-jp"), "resource", mime="text/html; charset=EUC-JP"), ""),
        (record(b"abc", "resource", mime="text/plain"), "not a page"),
        (record(b"garbage"), "broken record"),
        (record(answer(), length=10**15), "could not be read"),
        (record(answer(b"a" * 3_000_000)), "too large"),
        (record(b"a" * 3_000_000), "too large"),
    ],
)
def test_only_an_answer_with_success_is_a_page(tmp_path, monkeypatch, data, dropped):
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 1_000_000)
    raw, *others = read_records(tmp_path, data, record(answer()))
    assert raw.dropped == dropped and (SAID in raw.text) == (not dropped)
    assert [SAID in raw.text for raw in others] == [True] * (dropped != "could not be read")
    if dropped == "broken record":
        told = readers.described(tmp_path / "a.warc", raw)
        assert told.endswith("a.warc: record 1 is no answer of a web server")


COMPRESSORS = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}
COMPRESSORS["zstd"] = lambda data: opened.zstandard().compress(data)
RAW_DEFLATE = zlib.compress(PAGE.encode())[2:-4]


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        *((name, compress(UTF_8_PAGE)) for name, compress in COMPRESSORS.items()),
        ("X-GZIP", gzip.compress(UTF_8_PAGE)),
        ("deflate", RAW_DEFLATE),
        ("br, gzip", gzip.compress(brotli.compress(PAGE.encode()))),
        ("identity", PAGE.encode()),
        ("gzip", PAGE.encode()),  # decoded by the crawler, with the header left
        ("br", PAGE.encode()),
        ("", PAGE.encode()),
    ],
)
@pytest.mark.parametrize("chunked", ["", "in two", "joined by the crawler"])
def test_a_body_is_decoded(tmp_path, coding, body, chunked):
    headers = {"Content_Encoding": coding}
    if chunked:
        headers["Transfer_Encoding"] = "chunked"
    if chunked == "in two":
        half = len(body) // 2
        body = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"
    (raw,) = read_records(tmp_path, record(answer(body, **headers)))
    assert SAID in raw.text


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_body_that_expands_without_bound_is_dropped(tmp_path, monkeypatch, coding):
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 100_000)
    bomb = b"a" * 2_000_000
    for name in coding.split(", "):
        bomb = COMPRESSORS[name](bomb)
    first, second = read_records(tmp_path, record(answer(bomb, Content_Encoding=coding)), record(answer()))
    assert first.dropped == "too large" and SAID in second.text


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("compress", [b"".join, gz])
def test_a_warc_that_is_cut_off_is_named_and_what_was_before_is_read(tmp_path, kept, compress):
    data = compress([record(answer())] * 2)
    raws = read_records(tmp_path, data[: int(len(data) * kept)])
    assert [SAID in raw.text for raw in raws] == [True] * (kept > 0.5) + [False]
    assert raws[-1].dropped == "could not be read" and "download it again" in raws[-1].problem
    (raw,) = read_records(tmp_path, b"not a warc file at all\n" * 10)
    told = readers.described(tmp_path / "a.warc", raw)
    assert told == f"{tmp_path}/a.warc: is not WARC or is cut off; copy or download it again"


@pytest.mark.parametrize("wrong", [-20, 20, "none", "-5", "²"])
def test_a_record_of_a_wrong_length_costs_what_it_covers(tmp_path, wrong):
    length = len(answer()) + wrong if isinstance(wrong, int) else wrong
    records = [record(answer()), record(answer(), length=length), record(answer()), record(answer())]
    raws = read_records(tmp_path, *records)
    assert SAID in raws[0].text and SAID in raws[-1].text
    assert [raw.dropped for raw in raws].count("broken record") >= 1


def test_headers_without_end_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "MOST_HEADER_BYTES", 1 << 12)
    endless = b"WARC/1.0\r\n" + b"a: b\r\n" * 2_000 + b"\r\n\r\n"
    raws = read_records(tmp_path, endless, b"WARC/1.0\r\nx: " + b"y" * 12_000 + b"\r\n\r\n", record(answer()))
    assert SAID in raws[-1].text and {raw.dropped for raw in raws[:-1]} == {"broken record"}
    assert [raw.problem[:15] for raw in raws[:-1]] == ["has no length", "does not begin "] * 2


def test_hostile_headers_take_linear_time_and_bounded_memory(tmp_path, monkeypatch):
    spaces = answer(mime=f"text/html; charset={' ' * 40_000};")
    continued = answer().replace(b"\r\n\r\n", b"\r\n" + b" \r\n" * 100_000 + b" more\r\n\r\n", 1)
    begin = time.thread_time()
    assert all(SAID in raw.text for raw in read_records(tmp_path, record(spaces), record(continued)))
    assert time.thread_time() - begin < 5  # 0.1 s; 12 s where each space begins the search again
    monkeypatch.setattr(warc, "MOST_HEADER_BYTES", 1 << 12)
    assert read_records(tmp_path, record(answer(x="y" * 5_000)))[0].text == ""  # no more of its head is read
