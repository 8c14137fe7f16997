"""The pages in a WARC file of a web crawl (ISO 28500), compressed or not.

Records, and the answers of web servers in them, are taken apart here within bounds: a record that is too large is
skipped, a body is expanded up to a bound, and after a broken record the next one is looked for. Libraries do not hold
that. FastWARC 2.0.1 and warcio end at the first broken record. FastWARC reads a file that is cut off without an error,
and expands bodies without a bound. Of the eleven kinds of bodies in the tests it reads seven: not raw deflate or
`x-gzip`, nor what a crawler has decoded and left the header; and none with an extension in its chunks. warcio reads
headers of any size.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tpullm.corpus.document import BROKEN_RECORD, NOT_UTF8, Raw
from tpullm.corpus.files import encodings, opened, pages, records

Headers = Sequence[tuple[str, str]]
NOT_A_PAGE, NO_SUCCESS = "not a page", "no success"
NO_WARC = "is not WARC or is cut off; copy or download it again"
CUT_OFF = "is cut off in its last record; copy or download it again"
MOST_HEADER_BYTES = 1 << 20
READ = ("response", "resource", "conversion")  # the types of records that hold a page
HTML = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"""charset\s*+=\s*+["']?+\s*+([^\s"';,]+)""", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_HEAD_END = re.compile(rb"\r\n\r\n|\n\n")
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")


def read(path: Path) -> Iterator[Raw]:
    """The pages of a file in their order, each with what the headers of its record say of it.

    Raises:
        Unreadable: it is no WARC, or cut off.
    """
    with opened.open_bytes(path, by_content=True) as stream:
        for number, found, raw in _page_records(stream):
            identity = header_value(found, "warc-record-id")[: records.MOST_CHARACTERS]
            yield dataclasses.replace(
                raw,
                record=f"record {number}" + (f" ({identity})" if identity else ""),
                url=header_value(found, "warc-target-uri").strip("<>")[: records.MOST_CHARACTERS],
                date=header_value(found, "warc-date")[:40],
            )


def _page_records(stream: BinaryIO) -> Iterator[tuple[int, Headers, Raw]]:
    """Each page, and what is broken between them: the number of its record from 1, the record's headers, and it."""
    number = 0
    while line := _next_header_line(stream, b""):
        number += 1
        if not line.startswith(b"WARC/"):
            if number == 1:
                raise opened.Unreadable(NO_WARC)
            yield number, (), _broken_warc_record("does not begin where the one before it ends (is a length wrong?)")
            if not _next_header_line(stream, (b"WARC/1.", b"WARC/0.")):
                return
            number += 1
        found = _record_headers(stream)
        length, is_read = header_value(found, "content-length"), header_value(found, "warc-type").lower() in READ
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            yield number, found, _broken_warc_record("has no length")
        elif is_read and int(length) <= pages.MOST_PAGE_BYTES + MOST_HEADER_BYTES:
            if raw := _page_of_record(found, _record_content(stream, int(length))):
                yield number, found, raw
        else:
            for start in range(0, int(length), opened.BUFFER_BYTES):
                _record_content(stream, min(int(length) - start, opened.BUFFER_BYTES))
            if is_read:
                yield number, found, pages.too_large()
    if number == 0:
        raise opened.Unreadable(NO_WARC)


def _next_header_line(stream: BinaryIO, begins: bytes | tuple[bytes, ...]) -> bytes:
    """The next line that is not empty and begins so; b"" at the end of the file."""
    while (line := stream.readline(MOST_HEADER_BYTES)) and not (line.strip() and line.startswith(begins)):
        pass
    return line


def _record_headers(stream: BinaryIO) -> Headers:
    lines, size = [], 0
    while size < MOST_HEADER_BYTES and (line := stream.readline(MOST_HEADER_BYTES)).strip():
        lines.append(line)
        size += len(line)
    if not line:
        raise opened.Unreadable(CUT_OFF)
    return parsed_headers(lines)


def _record_content(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise opened.Unreadable(CUT_OFF)
    return data


def parsed_headers(lines: Sequence[bytes]) -> list[tuple[str, str]]:
    """Names and values; a line that begins with a space goes on with the value before it."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        name, colon, rest = text.partition(":")
        if text[:1] in (" ", "\t") and found:
            found[-1][1].append(text.strip())
        elif colon:
            found.append((name.strip(), [rest.strip()]))
    return [(name, " ".join(values)) for name, values in found]


def header_value(found: Headers, name: str) -> str:
    """The value of the first header of that name; "" if there is none."""
    return next((text for key, text in found if key.lower() == name), "")


def _page_of_record(about: Headers, data: bytes) -> Raw | None:
    """The document of a record of a type of `READ`; None if it holds no page by its nature.

    Args:
        about: the record's headers.
        data: its content.
    """
    kind = header_value(about, "warc-type").lower()
    if kind == "conversion":  # plain text (WET)
        language = records.language(header_value(about, "warc-identified-content-language"))
        return NOT_UTF8 if (text := encodings.decode(data)) is None else Raw(text, language)
    if kind == "resource":
        return _page_of_http_answer(data, header_value(about, "content-type"), ())
    if not header_value(about, "warc-target-uri").strip("<").lower().startswith(("http:", "https:")):
        return None  # such as an answer of DNS
    status = _STATUS.match(data)
    if not status:
        return _broken_warc_record("is no answer of a web server")
    end = _HEAD_END.search(data, 0, MOST_HEADER_BYTES)  # of 64 MiB of `:` and line ends, objects take gigabytes
    head, body = (data[: end.start()], data[end.end() :]) if end else (data[:MOST_HEADER_BYTES], b"")
    found = parsed_headers(head.split(b"\n")[1:])
    if not 200 <= int(status[1]) < 300:
        return Raw(dropped=NO_SUCCESS)
    return _page_of_http_answer(_decoded_body(body, found), header_value(found, "content-type"), found)


def _broken_warc_record(problem: str) -> Raw:
    return Raw(dropped=BROKEN_RECORD, problem=problem)


def _page_of_http_answer(data: bytes, content_type: str, found: Headers) -> Raw:
    mime = content_type.partition(";")[0].strip().lower()
    if mime not in (*HTML, "") or (not mime and b"\0" in data[:1024]):
        return Raw(dropped=NOT_A_PAGE)
    charset = _CHARSET.search(content_type)
    return pages.read(data, charset[1] if charset else "", found)


def _decoded_body(body: bytes, found: Headers) -> bytes:
    """The body of an answer as it was before its encodings, or the beginning of one that is larger than any page.

    Crawlers join the chunks of a body or decode it, and leave the header: such a body stays as it is.
    """
    if "chunked" in header_value(found, "transfer-encoding").lower():
        parts, place = [], 0
        while (match := _CHUNK.match(body, place)) and (size := int(match[1], 16)):
            parts.append(body[match.end() : match.end() + size])
            place = match.end() + size
            place += 2 if body[place : place + 2] == b"\r\n" else body[place : place + 1] == b"\n"
        body = b"".join(parts) if parts else body
    codings = [coding.strip().lower() for coding in header_value(found, "content-encoding").split(",")]
    for coding in codings[:-4:-1]:  # three at most, the last one first
        body = _decompressed_body(body, coding, pages.MOST_PAGE_BYTES + 1)
        if len(body) > pages.MOST_PAGE_BYTES:
            break
    return body


def _decompressed_body(body: bytes, coding: str, most: int) -> bytes:
    """The first `most` bytes of a body without one encoding; the body itself if it is not in it."""
    import brotli

    zstd = opened.zstandard()
    try:
        if coding in ("gzip", "x-gzip"):
            return zlib.decompressobj(31).decompress(body, most)
        if coding == "deflate":
            try:
                return zlib.decompressobj().decompress(body, most)
            except zlib.error:  # without the header of zlib, as some servers send it
                return zlib.decompressobj(-15).decompress(body, most)
        if coding == "br":
            return brotli.Decompressor().process(body, output_buffer_limit=most)
        if coding == "zstd":
            return zstd.ZstdDecompressor().decompress(body, most)
    except (zlib.error, brotli.error, zstd.ZstdError, OSError, EOFError, ValueError):
        pass
    return body
