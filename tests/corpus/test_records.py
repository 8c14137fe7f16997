"""The records of others' corpora are read as they are, and of a broken or huge one no more is lost than itself."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.test_readers import read, wrong
from tpullm.corpus.files import opened, readers, records
from tpullm.corpus.files.source_files import find
from tpullm.corpus.filters import verdicts
from tpullm.recipe.schema import Source

# A record of each, with the fields of their own documentation.
FINEWEB = {
    "text": "A text.", "id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://a.example/x",
    "date": "2024-02-21T00:08:17Z", "file_path": "s3://commoncrawl/a.warc.gz", "language": "en",
    "language_score": 0.97, "token_count": 3,
}  # fmt: skip
FINEWEB_2 = FINEWEB | {"language": "jpn", "language_script": "Jpan", "minhash_cluster_size": 1}
DOLMA = {
    "id": "d1", "text": "A text.", "source": "common-crawl", "version": "v0", "added": "2024-04-15T08:50:00Z",
    "created": "2019-02-01T00:00:00Z", "metadata": {"url": "https://a.example/x", "license": "CC-BY-4.0"},
}  # fmt: skip
RED_PAJAMA_META = {"url": "https://a.example/x", "timestamp": "2023-03-01", "language": "de"}
RED_PAJAMA = {"text": "A text.", "meta": json.dumps(RED_PAJAMA_META)}
OSCAR_HEADERS = {"warc-record-id": "<urn:uuid:2>", "warc-target-uri": "https://a.example/x", "warc-date": "2021-01-01"}
OSCAR = {"text": "A text.", "warc_headers": OSCAR_HEADERS, "metadata": {"identification": {"label": "fr"}}}
STACK = {"text": "A text.", "detected_licenses": ["MIT", "Apache-2.0"], "language": "Python"}
EXPECTED = {
    "fineweb": (FINEWEB, ("2024-02-21T00:08:17Z", "", "en", "<urn:uuid:1>")),
    "fineweb-2": (FINEWEB_2, ("2024-02-21T00:08:17Z", "", "ja", "<urn:uuid:1>")),
    "dolma": (DOLMA, ("2019-02-01T00:00:00Z", "CC-BY-4.0", "", "d1")),
    "red-pajama": (RED_PAJAMA, ("2023-03-01", "", "de", "")),
    "oscar": (OSCAR, ("2021-01-01", "", "", "<urn:uuid:2>")),
    "the-stack": (STACK, ("", "MIT, Apache-2.0", "", "")),
}


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("corpus", EXPECTED)
def test_a_corpus_is_read_as_it_is(tmp_path, corpus, suffix):
    folder = tmp_path / "corpus.parquet" / "CC-MAIN"  # a folder may have the name of a file
    folder.mkdir(parents=True)
    record, (date, licence, language, identity) = EXPECTED[corpus]
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, record]), folder / "000_0.parquet")
    else:
        (folder / f"000_0{suffix}").write_bytes(gzip.compress((json.dumps(record) + "\n").encode() * 2))
    source = Source("s", "files", str(tmp_path / "corpus.parquet"))
    (file,) = find(source, tmp_path).files
    first, second = readers.read(file, source)
    assert (first.text, first.date, first.licence, first.language) == ("A text.", date, licence, language)
    assert first.url == ("" if corpus == "the-stack" else "https://a.example/x")
    where = "row" if suffix == ".parquet" else "line"
    assert second.record == (f"{where} 2 ({identity})" if identity else f"{where} 2")


def test_a_fact_is_one_line_of_bounded_length_and_a_language_two_letters():
    record = {"URL": "a\nb\x00\ud800" * 10_000, "meta": {"License": ["a", None, {"b": 1}, 5]}, "date": {"$date": 1}}
    found = records.facts_of(record)
    assert len(found["url"]) <= records.MOST_CHARACTERS and "\n" not in found["url"] and found["url"].encode()
    assert found["licence"] == "a, 5" and found["date"] == ""
    known = {"jpn_Jpan": "ja", "ja-JP": "ja", "EN": "en", "ben": "bn"}
    known |= dict.fromkeys(("Python", "", "xyzzy", "en, de", "qqq", "日本語"), "")
    assert {name: records.language(name) for name in known} == known


KEYS = st.sampled_from([*sorted(records.NAMES), *records.INNER, "URL", "x"])
JSON = st.none() | st.booleans() | st.floats() | st.sampled_from(["", "en", "{", '{"url": 1}', "a\n\ud800"])


@settings(max_examples=25)
@given(st.dictionaries(KEYS, JSON | st.lists(JSON) | st.dictionaries(KEYS, JSON | st.lists(JSON))))
def test_no_record_breaks_them(record):
    assert all(isinstance(value, str) for value in records.facts_of(record).values())


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"body": "one"}', b"", b'{"body": null}', b'{"body": "\xff"}', json.dumps({"body": "二\r\n"}).encode()]
    path.write_bytes(b"\n".join(lines))
    raws = read(path, "jsonl", text_key="body")
    assert [(raw.text, raw.dropped) for raw in raws] == [("one", ""), ("", ""), ("", "not UTF-8"), ("二\n", "")]
    assert [raw.record for raw in raws] == ["line 1", "line 3", "line 4", "line 5"]


WRONG = {
    '{"text": "x"': "is not JSON (Expecting ',' delimiter)",
    "[1]": "has no 'text': it is not an object",
    '{"body": "x"}': "has no 'text': its keys are body",
    '{"text": 5}': "has no text in 'text' but int",
    "[" * 500_000: "is not JSON (it is nested too deep)",
    '{"text": ' + "1" * 5000 + "}": "is not JSON (Exceeds the limit",
}


def test_a_wrong_line_of_json_is_named_and_the_others_are_read(tmp_path):
    for line, message in WRONG.items():
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "fine"}\n' + line + '\n{"text": "too"}\n')
        raws = read(path, "jsonl")
        assert [raw.text for raw in raws] == ["fine", "", "too"]
        assert wrong(path, raws).startswith(f"line 2 {message}")


@pytest.mark.parametrize("end", [b"\n", b'\n{"text": "b"}'])
@pytest.mark.parametrize("length", [63, 64, 1 << 20])
def test_a_line_without_end_is_put_aside(tmp_path, monkeypatch, length, end):
    monkeypatch.setattr(opened, "MOST_RECORD_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"a" * (length - 12) + b'"}' + end)
    first, *others = read(path, "jsonl")
    assert first.text == ("a" * 51 if length == 63 else "") and bool(first.problem) == (length > 63)
    assert [raw.text for raw in others] == ["b"] * (len(end) > 1)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    assert read(write(path, pyarrow.array([], pyarrow.string()))) == []
    pyarrow.parquet.write_table(pyarrow.table({"text": ["一", None, "三"], "n": [1, 2, 3]}), path)
    raws = read(path, "parquet")
    assert [(raw.text, raw.record) for raw in raws] == [("一", "row 1"), ("", "row 2"), ("三", "row 3")]
    told = wrong(path, read(path, "parquet", text_key="body"))
    assert told.startswith("has no column 'body': its columns are text, n; set text_key")
    path.write_bytes(path.read_bytes()[:100])
    assert wrong(path, read(path, "parquet")).startswith("is not Parquet or is cut off")
    assert wrong(path, read(write(path, [5]))).startswith("row 1 has no text in 'text' but int")
    for text in ("first", "second"):  # the file at a path may change
        assert [raw.text for raw in read(write(path, [text]))] == [text]
    fine, broken = read(write(path, pyarrow.array([b"fine", b"\xff"]).view(pyarrow.string())))
    assert fine.text == "fine" and verdicts.unreadable(broken.text) == "broken encoding"


def write(path, texts, **settings):
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", **settings)
    return path


def test_rows_are_read_a_few_at_a_time_in_their_order(tmp_path, monkeypatch):
    texts = [f"{number} " + "a" * (number % 7 * 20_000) for number in range(200)]
    monkeypatch.setattr(records, "BATCH_BYTES", 1 << 21)
    asked = []
    call = opened.in_child
    monkeypatch.setattr(opened, "in_child", lambda *arguments: asked.append(arguments) or call(*arguments))
    assert [raw.text for raw in read(write(tmp_path / "a.parquet", texts))] == texts and 2 < len(asked) < 20


def test_rows_that_are_too_much_at_once_are_read_one_by_one(tmp_path, monkeypatch):
    call = opened.in_child

    def limited(function, *arguments):
        if function.endswith(":rows") and arguments[3] > 1 and arguments[4] > 0 or arguments[4:5] == (7,):
            raise opened.Unreadable("too much")
        return call(function, *arguments)

    monkeypatch.setattr(opened, "in_child", limited)
    monkeypatch.setattr(records, "BATCH_ROWS", 3)
    *raws, last = read(write(tmp_path / "a.parquet", list("abcdefghij")))
    assert [raw.text for raw in raws] == list("abcdefg")
    assert (last.record, last.problem) == ("rows from 8 to 10", "cannot be read (too much)")


def test_a_page_that_lies_about_its_size_ends_no_more_than_its_group(tmp_path):
    path = write(tmp_path / "a.parquet", [f"row {number}" for number in range(100)], row_group_size=50)
    data = path.read_bytes()
    for place in range(4, len(data) - 8, 31):
        path.write_bytes(data[:place] + b"\xff\xff\x7f" + data[place + 3 :])
        raws = read(path)
        assert raws and all(raw.dropped or isinstance(raw.text, str) for raw in raws)
