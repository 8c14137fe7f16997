"""Files → raw documents, one reader a kind.

datatrove's readers are not used here, where a user's file must never lose a line in silence: its JSON Lines reader
skips a broken line with a warning, and its WARC reader needs two C libraries to guess what the headers say.
"""

import contextlib
import dataclasses
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tpullm import storage
from tpullm.corpus import extract, python_library, sources
from tpullm.corpus.document import Raw
from tpullm.errors import UserError
from tpullm.recipe.schema import Source

NOT_UTF8 = Raw(dropped="not UTF-8")


def read(file: sources.File, source: Source) -> Iterator[Raw]:
    """The documents of one file, in its order; of a part of a file, those in about its first `file.bytes`.

    `UserError` names a file that is broken or cut off.
    """
    with _readable(file.path):
        path = storage.local_copy(file.path)
        if file.kind in WHOLE:
            yield WHOLE[file.kind](_bytes(path, file.bytes if file.is_part else -1))
        else:
            documents = MANY[file.kind](path, source)
            yield from _first(documents, file.bytes) if file.is_part else documents


def _first(documents: Iterator[Raw], most: int) -> Iterator[Raw]:
    """Documents until they hold `most` bytes of text."""
    taken = 0
    for raw in documents:
        yield raw
        taken += len(raw.text.encode())
        if taken >= most:
            return


def _bytes(path: Path, most: int) -> bytes:
    """A file's bytes, decompressed: all (-1), or the first `most`, to the end of a line or else of a character."""
    with open_bytes(path) as file:
        data = file.read(most)
        if most < 0 or not file.read(1):
            return data
    if end := data.rfind(b"\n") + 1:
        return data[:end]
    ends = (end for end in range(len(data), len(data) - 4, -1) if extract.decode(data[:end]) is not None)
    return data[: next(ends, len(data))]


def generate(source: Source, seed: int) -> Iterator[Raw]:
    """The documents of a `tenki` source."""
    from tpullm.corpus import tenki

    return (Raw(text, "ja") for text in tenki.documents(source.documents, seed))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it complete? Copy or download it again") from None


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed as its extension says."""
    import bz2
    import gzip

    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}
    with openers.get(path.suffix.lower(), open)(path, "rb") as file:
        yield file


def _open_zstandard(path: Path, mode: str) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def _text(data: bytes) -> Raw:
    text = extract.decode(data)
    if text is not None:
        return Raw(text)
    found = extract.decode_japanese(data)
    return Raw(found[0], "ja", encoding=found[1]) if found else NOT_UTF8


def _markdown(data: bytes) -> Raw:
    raw = _text(data)
    return raw if raw.dropped else dataclasses.replace(raw, text=extract.markdown_to_text(raw.text))


def _html(data: bytes) -> Raw:
    page = extract.decode_html(data)
    return NOT_UTF8 if page is None else Raw(extract.html_to_text(page))


def _code(data: bytes) -> Raw:
    raw = _text(data)
    return raw if raw.dropped else dataclasses.replace(raw, language="code")


def _jsonl(path: Path, source: Source) -> Iterator[Raw]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            text = extract.decode(line)
            yield NOT_UTF8 if text is None else Raw(_field(text, source.text_key, f"{path}: line {number}"))


def _field(line: str, key: str, where: str) -> str:
    """The text of one line of JSON Lines; null is an empty document."""
    try:
        value = json.loads(line)
    except ValueError as error:
        reason = getattr(error, "msg", error)
        raise UserError(f"{where} is not JSON ({reason}); correct or remove the line") from None
    if not isinstance(value, dict) or key not in value:
        there = f"its keys are {', '.join(value)}" if isinstance(value, dict) else "it is not an object"
        raise UserError(f"{where} has no {key!r}: {there}; set text_key of the source to the field that holds the text")
    return _as_text(value[key], key, where)


def _as_text(value: Any, key: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {key!r} is not text but {type(value).__name__}; set text_key to another field")
    return (value or "").replace("\r\n", "\n").replace("\r", "\n")


def _parquet(path: Path, source: Source) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if source.text_key not in names:
                raise UserError(
                    f"{path} has no column {source.text_key!r}: its columns are {', '.join(names)}; set text_key"
                )
            for batch in table.iter_batches(batch_size=1000, columns=[source.text_key]):
                for value in batch.column(0).to_pylist():
                    yield Raw(_as_text(value, source.text_key, str(path)))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: is not Parquet or is cut off ({error}); copy or download it again") from None


def _warc(path: Path, source: Source) -> Iterator[Raw]:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    found = False
    with open(path, "rb") as file:
        records = iter(ArchiveIterator(file))
        while True:
            try:
                record = next(records, None)
            except (ArchiveLoadFailed, AttributeError):  # the latter where a header is cut off before its address
                raise _broken_warc(path) from None
            if record is None:
                break
            found = True
            data = record.content_stream().read()
            if not _is_complete(record):
                raise _broken_warc(path)
            if record.rec_type in ("response", "conversion"):
                yield _record(record, data)
    if not found:
        raise _broken_warc(path)


def _is_complete(record: Any) -> bool:
    """Whether all of a record was there: warcio ends quietly where its bytes, or its header, are cut off."""
    announced = record.format == "warc" and record.rec_headers.get_header("Content-Length")
    return bool(announced) and getattr(record.raw_stream, "limit", 0) <= 0


def _broken_warc(path: Path) -> UserError:
    return UserError(f"{path}: is not WARC or is cut off; copy or download it again")


def _record(record: Any, data: bytes) -> Raw:
    """One page of a crawl: `response` is as the server sent it, `conversion` is text already (WET)."""
    if record.rec_type == "conversion":
        text = extract.decode(data)
        return NOT_UTF8 if text is None else Raw(text)
    content_type = record.http_headers.get_header("Content-Type", "") if record.http_headers else ""
    mime, _, parameters = content_type.partition(";")
    if mime.strip().lower() not in ("text/html", "application/xhtml+xml", ""):
        return Raw(dropped="not a page")
    _, _, charset = parameters.partition("charset=")
    page = extract.decode_html(data, charset.strip(" \"'"))
    return NOT_UTF8 if page is None else Raw(extract.html_to_text(page))


def _python(path: Path, source: Source) -> Iterator[Raw]:
    return python_library.documents(path, source.path)


# Files that are one document each, and files that hold many.
WHOLE: dict[str, Callable[[bytes], Raw]] = {"text": _text, "markdown": _markdown, "html": _html, "code": _code}
MANY: dict[str, Callable[[Path, Source], Iterator[Raw]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "warc": _warc,
    "python": _python,
}
