"""Broken files: none hangs the reader, none breaks it."""

import io
import json
import random
import time
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from tests.corpus.test_readers import COMPRESSED
from tests.corpus.test_warc import COMPRESSORS, answer, record
from tpullm.corpus import characters
from tpullm.corpus.files import readers
from tpullm.corpus.files.source_files import File
from tpullm.corpus.filters import verdicts
from tpullm.recipe.schema import Source

TEXT = "吾輩は猫である。名前はまだ無い。\nどこで生れたかとんと見当がつかぬ。\r\nIt was a dark night.\n" * 20
PAGE = (
    "<html><head><meta charset=utf-8><title>猫</title></head><body><nav><a href=/>Home</a></nav><article><h1>猫</h1>"
    + "".join(f"<p>{line}</p>" for line in TEXT.splitlines())
    + "<pre>a\n  b</pre><table><tr><td>1</td></tr></table></article></body></html>"
)
TOKENS = [
    b"<!--", b"-->", b"<div>" * 50, b"---\n", b"\x1b$B", b"\xff\xfe", b"\0", b'{"text":', b"[" * 100, b"WARC/1.0\r\n",
    b"\r\n\r\n", b"Content-Length: 99999999999\r\n", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xed\xa0\x80",
    b"&#x110000;", b"<pre>", b"\n", b"<table>" * 9, b"<a/>", b'<a href="x">',
]  # fmt: skip


def good_files():
    """A good file of each kind: its extension, its kind, its bytes."""
    rows = [{"text": line, "id": "1", "url": "http://a/", "metadata": {"date": "2026"}} for line in TEXT.splitlines()]
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    bodies = (("", PAGE.encode()), *((name, COMPRESSORS[name](PAGE.encode())) for name in ("gzip", "zstd")))
    records = [record(answer(body, Content_Encoding=coding)) for coding, body in bodies]
    for charset in ("utf-8", "cp932", "euc_jp", "utf-16", "iso2022_jp", "utf-16-be", "gb18030"):
        yield ".txt", "text", TEXT.encode(charset, "replace")
    yield ".md", "markdown", b"---\ntitle: a\n---\n" + TEXT.encode() + b"<!-- a -->"
    yield ".py", "code", b"def f(a):\n    return a\n" * 50
    yield from ((".html", "html", PAGE.encode(charset, "replace")) for charset in ("utf-8", "cp932", "iso2022_jp"))
    for suffix, compress in ({"": bytes} | COMPRESSED).items():
        yield f".txt{suffix}", "text", compress(TEXT.encode())
        yield f".jsonl{suffix}", "jsonl", compress(jsonl)
        yield f".html{suffix}", "html", compress(PAGE.encode())
        yield f".warc{suffix}", "warc", b"".join(map(compress, records))
    for settings in (
        {},
        {"compression": "zstd", "row_group_size": 10},
        {"compression": "none", "use_dictionary": False},
    ):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **settings)
        yield ".parquet", "parquet", file.getvalue()


def mutated(data, chance, others):
    for _ in range(chance.choice([1, 1, 2, 4])):
        place, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        token = chance.choice(TOKENS) * chance.choice([1, 9, 999])
        flipped = bytes(byte ^ (1 << chance.randrange(8)) for byte in data[place : place + 20])
        inserted = chance.choice([chance.randbytes(300), token, flipped, data[place:end] * 20])
        after = chance.choice([data[place:], data[end:], data[place + 20 :], b"", chance.choice(others)[end:]])
        data = (data[:place] + inserted + after)[:2_000_000]
    return data


@pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.slow)])
def test_broken_files_are_read_or_named(tmp_path, count):
    good = list(good_files())
    others = [data for _, _, data in good]
    found = Counter()
    for number in range(count):
        chance = random.Random(f"1 {number}")
        suffix, kind, data = chance.choice(good)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(mutated(data, chance, others))
        begin = time.monotonic()
        for raw in readers.read(File(path, kind, path.stat().st_size), Source("s", kind, str(path))):
            told = readers.described(path, raw)
            assert "\n" not in told and told.encode() and not (raw.dropped and raw.text)
            for fact in (raw.url, raw.date, raw.licence, raw.language, raw.record):
                assert fact.encode() is not None and "\n" not in fact
            is_text = not raw.dropped and not verdicts.unreadable(raw.text)
            assert not is_text or "".join(characters.cut(raw.text, 1000)).encode() and "\r" not in raw.text
            found += Counter(documents=1, bad=bool(raw.problem), texts=is_text)
        assert time.monotonic() - begin < 60  # the child's limit is 20 s of the processor
        path.unlink()
    assert found["documents"] > count and found["texts"] > count / 10 and found["bad"] > count / 10
