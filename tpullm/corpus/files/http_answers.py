"""The answer of a web server, as a crawl stores it: status, headers, and the body as it was before its encodings."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tpullm.corpus.files import opened

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
