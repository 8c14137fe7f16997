"""Files → raw documents, one reader for each kind of file; large text is read in pieces, so that memory is bounded.

A reader must not lose a line of a user's file silently: what cannot be read is a document that says why, and
`check` says when a source has too many of them. So datatrove's readers are not used. Its JSON Lines reader skips a
broken line with a warning, and its WARC reader needs two C libraries to guess what the headers say.
"""

import codecs
import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tpullm.corpus import domains
from tpullm.corpus.document import NOT_READ, NOT_UTF8, UNREADABLE, Raw
from tpullm.corpus.domains import programming
from tpullm.corpus.files import archives, encodings, laws, opened, pages, records, warc
from tpullm.corpus.files.desktop import reading
from tpullm.corpus.files.source_files import File, printable
from tpullm.recipe.schema import Source
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line

NAMED = 3  # bad documents in an error
PIECE_BYTES = 1 << 24
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(file: File, source: Source) -> Iterator[Raw]:
    """The documents of one file in their order; if only a part is read, those in about the first `file.bytes`.

    What cannot be read is a document with a reason of `document.BAD`, be it a record or the rest of the file: nothing
    in a file is an error here.
    """
    # One file of many that is broken is named and left out; of what a source is made of, `max_bad` decides.
    whole = NOT_READ if file.kind in reading.READERS or file.member else UNREADABLE
    with contextlib.ExitStack() as closing:
        path, left = closing.enter_context(storage.brief_copy(file.path)), file.bytes
        try:
            with opened.reading():
                if file.member:
                    path = closing.enter_context(archives.unpacked(path, file.member))
                documents = MANY[file.kind](path, file, source) if file.kind in MANY else _document_of_file(path, file)
                for raw in documents:
                    yield raw
                    if file.is_part and file.kind in MANY:
                        left -= len(raw.text.encode("utf-8", "surrogatepass"))
                        if left <= 0:
                            return
        except opened.Unreadable as error:
            yield Raw(dropped=whole, problem=str(error))


def check(source: Source, bad: int, documents: int, first: Sequence[str]) -> None:
    """Fail if a source exceeds `max_bad` unreadable documents: a share of them below 1, else a number.

    Args:
        source: the source.
        bad: how many cannot be read: those with a reason of `document.BAD`.
        documents: how many there are, with these.
        first: the first of the bad ones, as `described` has them.
    """
    if bad <= (source.max_bad if source.max_bad >= 1 else max(source.max_bad, 0) * documents):
        return
    if bad > NAMED:  # those that differ in more than numbers: by a wrong `text_key`, all lines of a file are alike
        first = list({re.sub(r"\d+", "", one): one for one in reversed(first)}.values())[::-1]
    named = first[:NAMED]
    more = f"; and {bad - len(named):,} more" if bad > len(named) else ""
    which = "it" if bad == 1 else "them"
    raise UserError(
        f"corpus.sources: {source.name}: {bad:,} of {documents:,} documents cannot be read: {'; '.join(named)}{more}; "
        f"correct or remove {which}, or put {which} aside with max_bad: {bad} for this source (it is "
        f"{source.max_bad:g})"
    )


def described(path: Path, raw: Raw) -> str:
    """A document that cannot be read, in one line: its file, its record, and what is wrong with it."""
    record = f" {raw.record}" if raw.record else ""
    return one_line(f"{printable(str(path))}:{record} {raw.problem or raw.dropped}", 500)


def _document_of_file(path: Path, file: File) -> Iterator[Raw]:
    """The document that a file is, or its pieces; a page is never cut."""
    if file.kind == "html":
        most = min(file.bytes, pages.MOST_PAGE_BYTES) if file.is_part else pages.MOST_PAGE_BYTES + 1
        with opened.open_bytes(path) as stream:
            yield pages.read(stream.read(most))
        return
    for where, data in _pieces_of_file(path, file):
        found = encodings.decode_text(data)
        if found is None:
            yield dataclasses.replace(NOT_UTF8, record=where, problem=encodings.not_decoded(data))
            continue
        text = pages.markdown_to_text(found.text) if file.kind == "markdown" else found.text
        language = "code" if file.kind == "code" else found.language
        yield dataclasses.replace(found, text=text, language=language, record=where)


# Kinds of files that hold many documents; all others are one document each.
MANY: dict[str, Callable[[Path, File, Source], Iterator[Raw]]] = {
    "jsonl": lambda path, file, source: records.read_json_lines(path, file, source.text_key),
    "parquet": lambda path, file, source: records.read_parquet(path, file, source.text_key),
    "warc": lambda path, file, source: warc.read(path),
    "python": lambda path, file, source: programming.documents(path, source.path),
    "law": lambda path, file, source: laws.documents(path),
    "licences": lambda path, file, source: domains.licences.documents(path, source.path),
    "medicine": lambda path, file, source: domains.medicine.documents(path),
    **dict.fromkeys(
        reading.READERS,
        lambda path, file, source: reading.read(path, file.kind, reading.Wanted(source.text_key, source.assistant)),
    ),
}


def _pieces_of_file(path: Path, file: File) -> Iterator[tuple[str, bytes]]:
    """The pieces of a file, or of what `file` names of it: where each begins ("" if there is one), and its bytes.

    A part of a file ends at a line, else at a character. A range has the lines that begin in it.
    """
    with opened.open_bytes(path) as stream:
        if not stream.peek(1):
            if not file.is_range:
                yield "", b""
            return
        is_utf_16 = stream.peek(2)[:2] in UTF_16_MARKS
        place = 0 if is_utf_16 else opened.next_line(stream, file.start, file.stop)
        if is_utf_16 and file.is_part:
            pieces = _utf_16_lines(io.BytesIO(stream.read(min(file.bytes, PIECE_BYTES) // 2 * 2)))
        elif is_utf_16:  # its line ends have two bytes; the first range is all of it
            pieces = _utf_16_lines(stream) if file.start == 0 else iter(())
        elif file.is_part:
            pieces = _first_bytes(stream, file.bytes)
        else:
            pieces = _lines_in_range(stream, place, file.stop)
        for number, data in enumerate(pieces):
            is_whole = number == 0 and not file.is_range and len(data) < PIECE_BYTES
            yield "" if is_whole else f"text at byte {place:,}", data
            place += len(data)


def _first_bytes(stream: BinaryIO, most: int) -> Iterator[bytes]:
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


def _utf_16_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of UTF-16, many at once, each time with a byte order mark; where it is broken, bytes that are none."""
    text = io.TextIOWrapper(stream, "utf-16", newline="\n")
    try:
        while piece := text.read(PIECE_BYTES // 2) + text.readline(PIECE_BYTES // 2):
            yield piece.encode("utf-16")
    except UnicodeDecodeError:
        yield UTF_16_MARKS[0] + b"\0"


def _lines_in_range(stream: BinaryIO, place: int, stop: int | None) -> Iterator[bytes]:
    """The lines that begin from `place` to `stop`, many at once; of a line without end pieces of whole characters."""
    goes_on, left = False, b""
    while goes_on or stop is None or place < stop:
        size = PIECE_BYTES if stop is None else max(0, min(PIECE_BYTES, stop - place))
        data = stream.read(size)
        is_full = len(data) == size
        if is_full and not data.endswith(b"\n"):
            data += stream.readline(PIECE_BYTES)
        if not data:
            break
        goes_on = is_full and not data.endswith(b"\n")
        place += len(data)
        data = left + data
        tail = data[-3:]
        whole = len(data) - len(tail) + codecs.utf_8_decode(tail, "ignore", False)[1]
        left = data[whole:]
        if whole:
            yield data[:whole]
    if left:
        yield left
