"""Ten thousand broken files: none hangs the reader, none breaks it, none takes its memory."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tpullm.corpus import characters
from tpullm.corpus.files import opened, readers
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


def jsonl():
    records = [{"text": line, "url": "http://a/", "metadata": {"date": "2026"}} for line in TEXT.splitlines()]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def parquet(**settings):
    file = io.BytesIO()
    rows = [
        {"text": line, "id": str(number), "metadata": {"url": "u"}} for number, line in enumerate(TEXT.splitlines())
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **settings)
    return file.getvalue()


def warc():
    page = PAGE.encode()
    records = []
    for coding, body in (("", page), ("gzip", gzip.compress(page)), ("zstd", compress_zst(page))):
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: {coding}\r\n\r\n".encode() + body
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\nContent-Length: {len(answer)}\r\n\r\n"
        records.append(head.encode() + answer + b"\r\n\r\n")
    return records


def compress_zst(data):
    return opened.zstandard().compress(data)


def good_files():
    """A good file of each kind: its extension, its kind, its bytes."""
    text = TEXT.encode()
    records = warc()
    yield from ((".txt", "text", TEXT.encode(charset, "replace")) for charset in ("utf-8", "cp932", "euc_jp", "utf-16"))
    yield from ((".txt", "text", TEXT.encode(charset, "replace")) for charset in ("iso2022_jp", "utf-16-be", "gb18030"))
    yield ".md", "markdown", b"---\ntitle: a\n---\n" + text + b"<!-- a -->"
    yield ".py", "code", b"def f(a):\n    return a\n" * 50
    yield from ((".html", "html", PAGE.encode(charset, "replace")) for charset in ("utf-8", "cp932", "iso2022_jp"))
    compressors = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress_zst}
    for suffix, compress in compressors.items():
        yield f".txt{suffix}", "text", compress(text)
        yield f".jsonl{suffix}", "jsonl", compress(jsonl())
        yield f".html{suffix}", "html", compress(PAGE.encode())
        yield f".warc{suffix}", "warc", b"".join(map(compress, records))
    yield ".jsonl", "jsonl", jsonl()
    yield ".warc", "warc", b"".join(records)
    yield ".parquet", "parquet", parquet()
    yield ".parquet", "parquet", parquet(compression="zstd", row_group_size=10)
    yield ".parquet", "parquet", parquet(compression="none", use_dictionary=False)


def mutated(data, chance, others):
    """The bytes of a good file with one to four things done to them."""
    for _ in range(chance.choice([1, 1, 2, 4])):
        place, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        kind = chance.choice([0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 6, 7])
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + chance.randbytes(chance.randint(1, 300)) + data[place:]
        elif kind == 2:
            data = data[:place] + data[end:]
        elif kind == 3:
            data = data[:end] + data[place:end] * chance.randint(1, 20) + data[end:]
        elif kind == 4:
            data = data[:place] + chance.choice(TOKENS) * chance.choice([1, 9, 999]) + data[place:]
        elif kind == 5:
            data = data[:place] + chance.choice(others)[end:]
        elif kind == 6:
            broken = bytearray(data)
            for _ in range(chance.randint(1, 20)):
                if broken:
                    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
            data = bytes(broken)
        elif kind == 7 and chance.random() < 0.3:
            data = chance.randbytes(place % 3000)
        data = data[:2_000_000]
    return data


def read_all(folder, count, seed):
    """Read `count` broken files; what was found, and what it cost."""
    good = list(good_files())
    others = [data for _, _, data in good]
    found = {"files": count, "documents": 0, "texts": 0, "bad": 0, "longest": 0.0, "slowest": ""}
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        suffix, kind, data = chance.choice(good)
        path = Path(folder, f"{number}{suffix}")
        path.write_bytes(mutated(data, chance, others))
        begin = time.monotonic()
        for raw in readers.read(File(path, kind, path.stat().st_size), Source("s", kind, str(path))):
            found["documents"] += 1
            found["bad"] += bool(raw.problem)
            told = readers.described(path, raw)
            assert "\n" not in told and told.encode() and not (raw.dropped and raw.text)
            for fact in (raw.url, raw.date, raw.licence, raw.language, raw.record):
                assert fact.encode() is not None and "\n" not in fact
            if not raw.dropped and not verdicts.unreadable(raw.text):
                found["texts"] += 1
                assert "".join(characters.cut(raw.text, 1000)).encode() and "\r" not in raw.text
        took = time.monotonic() - begin
        if took > found["longest"]:
            found |= {"longest": took, "slowest": path.name}
        else:
            path.unlink()
    opened.close_child()
    # A process starts with the figure of the one that started it, so its own is read from the system.
    own = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return found | {"SELF MiB": own >> 10, "CHILDREN MiB": children >> 10}


def test_broken_files_are_read_or_named(tmp_path):
    found = read_all(tmp_path, 30, seed=1)
    assert found["documents"] > 30 and found["texts"] > 3 and found["bad"] > 3


@pytest.mark.slow
def test_ten_thousand_broken_files_cost_no_more_than_themselves(tmp_path):
    call = f"test_fuzz.read_all({str(tmp_path)!r}, 10_000, 1)"
    script = f"import json; from tests.corpus import test_fuzz; print(json.dumps({call}))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["documents"] > 10_000 and found["texts"] > 1_000 and found["bad"] > 1_000
    assert found["longest"] < 60  # the child's limit is 20 s of the processor
    assert found["SELF MiB"] < 1024 and found["CHILDREN MiB"] < 1024
