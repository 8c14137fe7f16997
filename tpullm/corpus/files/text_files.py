"""Files that are one document each → their bytes; of large ones in pieces that end at a line, so memory is bounded."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tpullm.corpus.files import encodings, opened
from tpullm.corpus.files.source_files import File

PIECE_BYTES = 1 << 24
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(path: Path, file: File) -> Iterator[tuple[str, bytes]]:
    """The pieces of a file, or of what `file` names of it: where each begins ("" if there is one), and its bytes.

    A part of a file ends at a line, else at a character. A range has the lines that begin in it.
    """
    with opened.open_bytes(path) as stream:
        if not stream.peek(1):
            if not file.is_range:
                yield "", b""
            return
        is_utf_16 = stream.peek(2)[:2] in UTF_16_MARKS
        place = 0 if is_utf_16 else opened.next_line(stream, file.start)
        if is_utf_16 and file.is_part:
            pieces = _utf_16(io.BytesIO(stream.read(min(file.bytes, PIECE_BYTES) // 2 * 2)))
        elif is_utf_16:  # its line ends have two bytes; the first range is all of it
            pieces = _utf_16(stream) if file.start == 0 else iter(())
        elif file.is_part:
            pieces = _beginning(stream, file.bytes)
        else:
            pieces = _whole_characters(_lines(stream, place, file.stop))
        for number, data in enumerate(pieces):
            is_whole = number == 0 and not file.is_range and len(data) < PIECE_BYTES
            yield "" if is_whole else f"text at byte {place:,}", data
            place += len(data)


def _beginning(stream: BinaryIO, most: int) -> Iterator[bytes]:
    """The first `most` bytes up to the end of a line, or else of a character."""
    while most > PIECE_BYTES and (data := stream.read(PIECE_BYTES)):
        data += stream.readline(most - PIECE_BYTES)
        most -= len(data)
        yield data
    data = stream.read(most)
    if not stream.read(1):
        yield data
    elif end := data.rfind(b"\n") + 1:
        yield data[:end]
    else:
        ends = (end for end in range(len(data), len(data) - 4, -1) if encodings.decode(data[:end]) is not None)
        yield data[: next(ends, len(data))]


def _utf_16(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of UTF-16; of a large file the lines, many at once, each time with a byte order mark."""
    data = stream.read(PIECE_BYTES)
    if len(data) < PIECE_BYTES:
        yield data
        return
    decoder, left = codecs.getincrementaldecoder("utf-16")("replace"), ""
    while data:
        text = left + decoder.decode(data)
        end = text.rfind("\n") + 1 or len(text)
        left = text[end:]
        yield UTF_16_MARKS[0] + text[:end].encode("utf-16-le", "surrogatepass")
        data = stream.read(PIECE_BYTES)
    if left := left + decoder.decode(b"", True):
        yield UTF_16_MARKS[0] + left.encode("utf-16-le", "surrogatepass")


def _lines(stream: BinaryIO, place: int, stop: int | None) -> Iterator[bytes]:
    """The lines that begin from `place` to `stop`, many at once; a line without end in pieces."""
    goes_on = False
    while goes_on or stop is None or place < stop:
        size = PIECE_BYTES if stop is None else max(0, min(PIECE_BYTES, stop - place))
        data = stream.read(size)
        is_full = len(data) == size
        if is_full and not data.endswith(b"\n"):
            data += stream.readline(PIECE_BYTES)
        if not data:
            return
        goes_on = is_full and not data.endswith(b"\n")
        yield data
        place += len(data)


def _whole_characters(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in the same order, no character of UTF-8 in two pieces."""
    left = b""
    for piece in pieces:
        data = left + piece
        unfinished = _unfinished(data)
        left, data = data[len(data) - unfinished :], data[: len(data) - unfinished]
        if data:
            yield data
    if left:
        yield left


def _unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a character of UTF-8 without its last byte."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            break
    return 0
