"""Files → raw documents, one reader for each kind of file.

A reader must not lose a line of a user's file silently, so datatrove's readers are not used. Its JSON Lines reader
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
from tpullm.corpus import domains, encodings, markup, python_library, warc
from tpullm.corpus.document import NOT_UTF8, Raw
from tpullm.corpus.source_files import File
from tpullm.errors import UserError
from tpullm.recipe.schema import Source

# How large the text of a compressed file may be. Texts shrink to a third, logs to a fiftieth, a bomb to a thousandth.
EXPANDED_TIMES, EXPANDED_BYTES = 200, 1 << 28


def read(file: File, source: Source) -> Iterator[Raw]:
    """The documents of one file in their order; if only a part is read, those in about the first `file.bytes`.

    `UserError` names a file that is broken or cut off.
    """
    with readable(file.path):
        path = storage.local_copy(file.path)
        if file.kind in WHOLE:
            yield WHOLE[file.kind](_bytes(path, file.bytes if file.is_part else -1))
        else:
            documents = MANY[file.kind](path, source)
            yield from _first(documents, file.bytes) if file.is_part else documents


def _first(documents: Iterator[Raw], most: int) -> Iterator[Raw]:
    """The first documents, until they hold `most` bytes of text."""
    taken = 0
    for raw in documents:
        yield raw
        taken += len(raw.text.encode())
        if taken >= most:
            return


def _bytes(path: Path, most: int) -> bytes:
    """The decompressed bytes of a file: all (-1), or the first `most`, up to the end of a line, else of a character."""
    with open_bytes(path) as file:
        data = file.read(most)
        if most < 0 or not file.read(1):
            return data
    if end := data.rfind(b"\n") + 1:
        return data[:end]
    ends = (end for end in range(len(data), len(data) - 4, -1) if encodings.decode(data[:end]) is not None)
    return data[: next(ends, len(data))]


def generate(source: Source, seed: int) -> Iterator[Raw]:
    """The documents of a `tenki` source."""
    from tpullm.corpus import tenki

    return (Raw(text, "ja") for text in tenki.documents(source.documents, seed))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What fails in the block, because the file can't be read or unpacked, is a `UserError`."""
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it complete? Copy or download it again") from None


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as its extension says."""
    import bz2
    import gzip

    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}
    opener = openers.get(path.suffix.lower())
    with (opener or open)(path, "rb") as file:
        yield io.BufferedReader(_Expanded(file, path)) if opener else file


class _Expanded(io.RawIOBase):
    """The decompressed bytes of a file; `UserError` where they are more than any text would be."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path = file, path
        self._left = max(EXPANDED_BYTES, EXPANDED_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise UserError(
                f"{self._path}: is more than {EXPANDED_TIMES} times as large as its file; unpack it yourself if that "
                "is right"
            )
        buffer[: len(data)] = data
        return len(data)


def _open_zstandard(path: Path, mode: str) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def _text(data: bytes) -> Raw:
    text = encodings.decode(data)
    if text is not None:
        return Raw(text)
    found = encodings.decode_japanese(data)
    return Raw(found[0], "ja", encoding=found[1]) if found else NOT_UTF8


def _markdown(data: bytes) -> Raw:
    raw = _text(data)
    return raw if raw.dropped else dataclasses.replace(raw, text=markup.markdown_to_text(raw.text))


def _html(data: bytes) -> Raw:
    page = encodings.decode_html(data)
    return NOT_UTF8 if page is None else Raw(markup.html_to_text(page))


def _code(data: bytes) -> Raw:
    raw = _text(data)
    return raw if raw.dropped else dataclasses.replace(raw, language="code")


def _jsonl(path: Path, source: Source) -> Iterator[Raw]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            text = encodings.decode(line)
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
    return encodings.unix_lines(value or "")


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


# Kinds of files that are one document each, and kinds that hold many documents.
WHOLE: dict[str, Callable[[bytes], Raw]] = {"text": _text, "markdown": _markdown, "html": _html, "code": _code}
MANY: dict[str, Callable[[Path, Source], Iterator[Raw]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "warc": lambda path, source: warc.read(path),
    "python": lambda path, source: python_library.documents(path, source.path),
    "law": lambda path, source: domains.law.documents(path, source.path),
    "medicine": lambda path, source: domains.medicine.documents(path),
}
