"""The pages in a WARC file of a web crawl (ISO 28500), compressed or not.

warcio reads a header or a body of any size, and its iterator ends at the first broken record, so the records are taken
apart here: within bounds, and after a broken record the next one is looked for.

The answer of a web server, as a crawl stores it: status, headers, and the body as it was before its encodings.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tpullm.corpus.document import BROKEN_RECORD, NOT_UTF8, TOO_LARGE, Raw
from tpullm.corpus.files import encodings, json_lines, opened, pages

Headers = Sequence[tuple[str, str]]
MOST_ENCODINGS = 3  # one on top of the other
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")


class Answer(NamedTuple):
    """An answer.

    Args:
        status: its status code; 0 if it is no answer.
        headers: names and values.
        body: its body, without the encodings of its transfer.
    """

    status: int
    headers: Headers
    body: bytes


class TooLongError(Exception):
    """A body that expands to more than `most` bytes."""


def parse(data: bytes, most: int) -> Answer:
    """The answer whose bytes are `data`.

    Raises:
        TooLongError: its body has more than `most` bytes.
    """
    match = _STATUS.match(data)
    head, body = _split(data)
    if not match:
        return Answer(0, (), b"")
    found = headers(head.split(b"\n")[1:])
    if "chunked" in value(found, "transfer-encoding").lower():
        body = _joined(body)
    codings = [coding.strip().lower() for coding in value(found, "content-encoding").split(",")]
    for coding in codings[: -MOST_ENCODINGS - 1 : -1]:
        body = _decoded(body, coding, most)
        if len(body) > most:
            raise TooLongError
    return Answer(int(match[1]), found, body)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Head and body."""
    ends = [(place, mark) for mark in (b"\r\n\r\n", b"\n\n") if (place := data.find(mark)) >= 0]
    place, mark = min(ends, default=(len(data), b""))
    return data[:place], data[place + len(mark) :]


def headers(lines: Sequence[bytes]) -> list[tuple[str, str]]:
    """Names and values; a line that begins with a space goes on with the value before it."""
    found: list[tuple[str, str]] = []
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        name, colon, rest = text.partition(":")
        if text[:1] in (" ", "\t") and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {text.strip()}")
        elif colon:
            found.append((name.strip(), rest.strip()))
    return found


def value(found: Headers, name: str) -> str:
    """The value of the first header of that name; "" if there is none."""
    return next((text for key, text in found if key.lower() == name), "")


def _joined(body: bytes) -> bytes:
    """The chunks of a body, joined; the body itself if it has none, as crawlers join them and leave the header."""
    parts, place = [], 0
    while match := _CHUNK.match(body, place):
        size = int(match[1], 16)
        if size == 0:
            break
        parts.append(body[match.end() : match.end() + size])
        place = match.end() + size
        place += 2 if body[place : place + 2] == b"\r\n" else body[place : place + 1] == b"\n"
    return b"".join(parts) if parts else body


def _decoded(body: bytes, coding: str, most: int) -> bytes:
    """The first `most` + 1 bytes of a body without one encoding; the body itself if it is not in it.

    Crawlers decode a body and leave the header.
    """
    decode = _DECODERS.get(coding)
    try:
        return decode(body, most + 1) if decode else body
    except (zlib.error, OSError, EOFError, ValueError):
        return body


def _gzip(body: bytes, most: int) -> bytes:
    return zlib.decompressobj(31).decompress(body, most)


def _deflate(body: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, most)
    except zlib.error:  # without the header of zlib, as some servers send it
        return zlib.decompressobj(-15).decompress(body, most)


def _brotli(body: bytes, most: int) -> bytes:
    import brotli

    try:
        return brotli.Decompressor().process(body, output_buffer_limit=most)
    except brotli.error as error:
        raise ValueError from error


def _zstandard(body: bytes, most: int) -> bytes:
    zstd = opened.zstandard()
    try:
        return zstd.ZstdDecompressor().decompress(body, most)
    except zstd.ZstdError as error:
        raise ValueError from error


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstandard,
}


NOT_A_PAGE, NO_SUCCESS = "not a page", "no success"
NO_WARC = "is not WARC or is cut off; copy or download it again"
CUT_OFF = "is cut off in its last record; copy or download it again"
MOST_HEADER_BYTES = 1 << 20
READ = ("response", "resource", "conversion")  # the types of records that hold a page
HTML = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]+)""", re.IGNORECASE)


class Record(NamedTuple):
    """A record of a type of `READ`, or what is wrong.

    Args:
        number: its number in the file, from 1.
        headers: its headers.
        data: its content; None if that is too long.
        problem: why it is no record; "" if it is one.
    """

    number: int
    headers: Headers = ()
    data: bytes | None = None
    problem: str = ""


def read(path: Path) -> Iterator[Raw]:
    """The pages of a file in their order.

    Raises:
        Unreadable: it is no WARC, or cut off.
    """
    with opened.open_bytes(path, by_content=True) as stream:
        for record in _records(stream):
            raw = _broken(record.problem) if record.problem else _document(record)
            if raw is not None:
                yield _described(raw, record)


def _broken(problem: str) -> Raw:
    return Raw(dropped=BROKEN_RECORD, problem=problem)


def _described(raw: Raw, record: Record) -> Raw:
    """A document with what the headers of its record say of it."""
    identity = value(record.headers, "warc-record-id")[: json_lines.MOST_CHARACTERS]
    url = value(record.headers, "warc-target-uri").strip("<>")[: json_lines.MOST_CHARACTERS]
    return dataclasses.replace(
        raw,
        record=f"record {record.number}" + (f" ({identity})" if identity else ""),
        url=url,
        date=value(record.headers, "warc-date")[:40],
    )


def _records(stream: BinaryIO) -> Iterator[Record]:
    """The records that may hold a page, and what is broken between them."""
    number = 0
    while line := _next_record(stream):
        number += 1
        if not line.startswith(b"WARC/"):
            if number == 1:
                raise opened.Unreadable(NO_WARC)
            yield Record(number, problem="does not begin where the one before it ends (is a length wrong?)")
            if not (line := _resynchronized(stream)):
                return
            number += 1
        headers = _headers(stream)
        length = value(headers, "content-length")
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            yield Record(number, headers, problem="has no length")
        elif value(headers, "warc-type").lower() in READ and int(length) <= pages.MOST_PAGE_BYTES + MOST_HEADER_BYTES:
            yield Record(number, headers, _content(stream, int(length)))
        else:
            _skip(stream, int(length))
            if value(headers, "warc-type").lower() in READ:
                yield Record(number, headers)
    if number == 0:
        raise opened.Unreadable(NO_WARC)


def _next_record(stream: BinaryIO) -> bytes:
    """The next line that is not empty."""
    while (line := stream.readline(MOST_HEADER_BYTES)) and not line.strip():
        pass
    return line


def _resynchronized(stream: BinaryIO) -> bytes:
    """The next line that begins a record."""
    while (line := stream.readline(MOST_HEADER_BYTES)) and not line.startswith((b"WARC/1.", b"WARC/0.")):
        pass
    return line


def _headers(stream: BinaryIO) -> Headers:
    lines, size = [], 0
    while size < MOST_HEADER_BYTES:
        line = stream.readline(MOST_HEADER_BYTES)
        if not line:
            raise opened.Unreadable(CUT_OFF)
        if not line.strip():
            break
        lines.append(line)
        size += len(line)
    return headers(lines)


def _content(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise opened.Unreadable(CUT_OFF)
    return data


def _skip(stream: BinaryIO, length: int) -> None:
    while length:
        length -= len(_content(stream, min(length, opened.BUFFER_BYTES)))


def _document(record: Record) -> Raw | None:
    """The document of a record; None if it holds no page by its nature."""
    kind = value(record.headers, "warc-type").lower()
    if record.data is None:
        return _too_long()
    if kind == "conversion":  # plain text (WET)
        text = encodings.decode(record.data)
        language = json_lines.language(value(record.headers, "warc-identified-content-language"))
        return NOT_UTF8 if text is None else Raw(text, language)
    content_type = value(record.headers, "content-type")
    if kind == "resource":
        return _page(record.data, content_type, ())
    if not value(record.headers, "warc-target-uri").strip("<").lower().startswith(("http:", "https:")):
        return None  # such as an answer of DNS
    try:
        answer = parse(record.data, pages.MOST_PAGE_BYTES)
    except TooLongError:
        return _too_long()
    if not answer.status:
        return _broken("is no answer of a web server")
    if not 200 <= answer.status < 300:
        return Raw(dropped=NO_SUCCESS)
    return _page(answer.body, value(answer.headers, "content-type"), answer.headers)


def _too_long() -> Raw:
    return Raw(dropped=TOO_LARGE, problem=f"is a page of more than {pages.MOST_PAGE_BYTES >> 20} MiB")


def _page(data: bytes, content_type: str, headers: Headers) -> Raw:
    mime = content_type.partition(";")[0].strip().lower()
    if mime not in (*HTML, "") or (not mime and b"\0" in data[:1024]):
        return Raw(dropped=NOT_A_PAGE)
    charset = _CHARSET.search(content_type)
    return pages.read(data, charset[1] if charset else "", headers)
