"""The files of others' corpora are read as they are: text, address, date, licence, language, identity."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.files import opened, readers, records
from tpullm.corpus.files.source_files import find
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
DATATROVE = {
    "text": "A text.", "id": "t1", "media": [],
    "metadata": {"url": "https://a.example/x", "date": "2024-01-01", "language": "ja", "file_path": "a"},
}  # fmt: skip
RED_PAJAMA = {
    "text": "A text.",
    "meta": json.dumps({"url": "https://a.example/x", "timestamp": "2023-03-01", "language": "de"}),
}
OSCAR = {
    "text": "A text.",
    "warc_headers": {
        "warc-record-id": "<urn:uuid:2>",
        "warc-target-uri": "https://a.example/x",
        "warc-date": "2021-01-01",
    },
    "metadata": {"identification": {"label": "fr"}},
}
C4 = {"text": "A text.", "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.example/x"}
STACK = {"text": "A text.", "detected_licenses": ["MIT", "Apache-2.0"], "language": "Python"}
EXPECTED = {
    "fineweb": (FINEWEB, ("2024-02-21T00:08:17Z", "", "en", "<urn:uuid:1>")),
    "fineweb-2": (FINEWEB_2, ("2024-02-21T00:08:17Z", "", "ja", "<urn:uuid:1>")),
    "dolma": (DOLMA, ("2019-02-01T00:00:00Z", "CC-BY-4.0", "", "d1")),
    "datatrove": (DATATROVE, ("2024-01-01", "", "ja", "t1")),
    "red-pajama": (RED_PAJAMA, ("2023-03-01", "", "de", "")),
    "oscar": (OSCAR, ("2021-01-01", "", "", "<urn:uuid:2>")),
    "c4": (C4, ("2019-04-25T12:57:54Z", "", "", "")),
    "the-stack": (STACK, ("", "MIT, Apache-2.0", "", "")),
}


def write(path, records):
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        compress = {".gz": gzip.compress, ".zst": lambda data: opened.zstandard().compress(data)}.get(path.suffix)
        path.write_bytes(compress(data) if compress else data)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("corpus", EXPECTED)
def test_a_corpus_is_read_as_it_is(tmp_path, corpus, suffix):
    folder = tmp_path / "corpus.parquet" / "CC-MAIN"  # a folder may have the name of a file
    folder.mkdir(parents=True)
    record, (date, licence, language, identity) = EXPECTED[corpus]
    write(folder / f"000_0{suffix}", [record, record])
    source = Source("s", "files", str(tmp_path / "corpus.parquet"))
    (file,) = find(source, tmp_path).files
    first, second = readers.read(file, source)
    assert (first.text, first.date, first.licence, first.language) == ("A text.", date, licence, language)
    assert first.url == ("" if corpus == "the-stack" else "https://a.example/x")
    where = "row" if suffix == ".parquet" else "line"
    assert second.record == (f"{where} 2 ({identity})" if identity else f"{where} 2")


def test_the_case_of_a_name_does_not_matter():
    found = records.facts_of({"URL": "a", "WARC-Date": "b", "meta": {"License": "c", "ID": 7}})
    assert (found["url"], found["date"], found["licence"], found["id"]) == ("a", "b", "c", "7")


def test_a_fact_is_one_line_of_bounded_length(tmp_path):
    record = {"text": "x", "url": "a\nb\x00\ud800" * 10_000, "license": ["a", None, {"b": 1}, 5], "date": {"$date": 1}}
    found = records.facts_of(record)
    assert len(found["url"]) <= records.MOST_CHARACTERS and "\n" not in found["url"] and found["url"].encode()
    assert found["licence"] == "a, 5" and found["date"] == ""


@pytest.mark.parametrize(
    ("name", "code"),
    [("ja", "ja"), ("jpn", "ja"), ("jpn_Jpan", "ja"), ("ja-JP", "ja"), ("EN", "en"), ("deu", "de"), ("ben", "bn")]
    + [(name, "") for name in ("Python", "", "xyzzy", "en, de", "qqq", "日本語")],
)
def test_a_language_is_written_as_two_letters(name, code):
    assert records.language(name) == code


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*records.NAMES, *records.INNER]), inner)
    ),
)


@given(st.dictionaries(st.sampled_from([*records.NAMES, *records.INNER, "URL", "x"]), JSON))
def test_no_record_breaks_them(record):
    assert all(isinstance(value, str) for value in records.facts_of(record).values())


@pytest.mark.parametrize("expand_metadata", [False, True])
def test_what_datatrove_writes_is_read(tmp_path, expand_metadata):
    from datatrove.data import Document
    from datatrove.pipeline.writers import ParquetWriter

    metadata = {"url": "https://a.example/x", "date": "2024-01-01", "language": "ja", "license": "MIT"}
    with ParquetWriter(str(tmp_path / "out"), expand_metadata=expand_metadata) as writer:
        writer.write(Document(text="本を読む。", id="t1", metadata=metadata))
    source = Source("s", "files", str(tmp_path / "out"))
    ((raw,),) = [list(readers.read(file, source)) for file in find(source, tmp_path).files]
    assert (raw.text, raw.url, raw.date) == ("本を読む。", "https://a.example/x", "2024-01-01")
    assert (raw.licence, raw.language, raw.record) == ("MIT", "ja", "row 1 (t1)")
