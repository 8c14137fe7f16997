"""Files → raw documents, one reader for each kind of file.

A reader must not lose a line of a user's file silently, so datatrove's readers are not used. Its JSON Lines reader
skips a broken line with a warning, and its WARC reader needs two C libraries to guess what the headers say.

The readers of JSON Lines and Parquet know the fields of FineWeb, Dolma and datatrove (`fields.py`). So the files of
these corpora are read as they are, without a kind of their own.

Documents that cannot be read: how many a source puts up with, and what is said when there are more.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tpullm.corpus import domains
from tpullm.corpus.document import NOT_UTF8, UNREADABLE, Raw
from tpullm.corpus.domains import programming
from tpullm.corpus.files import encodings, json_lines, opened, pages, parquet_files, text_files, warc
from tpullm.corpus.files.source_files import File, printable
from tpullm.recipe.schema import Source
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line

NAMED = 3  # in the error


def described(path: Path, raw: Raw) -> str:
    """A document that cannot be read, in one line: its file, its record, and what is wrong with it."""
    record = f" {raw.record}" if raw.record else ""
    return one_line(f"{printable(str(path))}:{record} {raw.problem or raw.dropped}", 500)


def most(max_bad: float, documents: int) -> float:
    """How many of `documents` may be bad: a share of them below 1, else a number."""
    return max_bad if max_bad >= 1 else max(max_bad, 0) * documents


def check(source: Source, bad: int, documents: int, first: Sequence[str]) -> None:
    """`UserError` if more documents of a source cannot be read than it puts up with.

    Args:
        source: the source.
        bad: how many cannot be read: those with a reason of `document.BAD`.
        documents: how many there are, with these.
        first: the first of the bad ones, as `described` has them.
    """
    if bad <= most(source.max_bad, documents):
        return
    named = first[:NAMED] if bad <= NAMED else _unlike(first)[:NAMED]
    more = f"; and {bad - len(named):,} more" if bad > len(named) else ""
    which = "it" if bad == 1 else "them"
    raise UserError(
        f"corpus.sources: {source.name}: {bad:,} of {documents:,} documents cannot be read: {'; '.join(named)}{more}; "
        f"correct or remove {which}, or put {which} aside with max_bad: {bad} for this source (it is "
        f"{source.max_bad:g})"
    )


def _unlike(described: Sequence[str]) -> list[str]:
    """The first of those that differ in more than numbers: by a wrong `text_key`, all lines of a file are alike."""
    return list({re.sub(r"\d+", "", one): one for one in reversed(described)}.values())[::-1]


def read(file: File, source: Source) -> Iterator[Raw]:
    """The documents of one file in their order; if only a part is read, those in about the first `file.bytes`.

    What cannot be read is a document with a reason of `document.BAD`, be it a record or the rest of the file: nothing
    in a file is an error here. `bad_documents.check` says when there are too many.
    """
    with storage.brief_copy(file.path) as path:
        documents = MANY[file.kind](path, file, source) if file.kind in MANY else _whole(path, file)
        if file.is_part and file.kind in MANY:
            documents = _first(documents, file.bytes)
        try:
            with opened.reading():
                yield from documents
        except opened.Unreadable as error:
            yield Raw(dropped=UNREADABLE, problem=str(error))


def _first(documents: Iterator[Raw], most: int) -> Iterator[Raw]:
    """The first documents, until they hold `most` bytes of text."""
    taken = 0
    for raw in documents:
        yield raw
        taken += len(raw.text.encode("utf-8", "surrogatepass"))
        if taken >= most:
            return


def _whole(path: Path, file: File) -> Iterator[Raw]:
    """The document that a file is, or its pieces; a page is never cut."""
    if file.kind == "html":
        with opened.open_bytes(path) as stream:
            yield pages.read(
                stream.read(min(file.bytes, pages.MOST_PAGE_BYTES) if file.is_part else pages.MOST_PAGE_BYTES + 1)
            )
        return
    for where, data in text_files.read(path, file):
        yield dataclasses.replace(WHOLE[file.kind](data), record=where)


def generate(source: Source, seed: int) -> Iterator[Raw]:
    """The documents of a `tenki` source."""
    from tpullm.corpus import tenki

    return (Raw(text, "ja") for text in tenki.documents(source.documents, seed))


def _text(data: bytes) -> Raw:
    found = encodings.decode_text(data)
    return Raw(found.text, found.language, encoding=found.encoding) if found else NOT_UTF8


def _markdown(data: bytes) -> Raw:
    raw = _text(data)
    return dataclasses.replace(raw, text=pages.markdown_to_text(raw.text))


def _code(data: bytes) -> Raw:
    raw = _text(data)
    return raw if raw.dropped else dataclasses.replace(raw, language="code")


# Kinds of files that are one document each, and kinds that hold many documents.
WHOLE: dict[str, Callable[[bytes], Raw]] = {"text": _text, "markdown": _markdown, "code": _code}
MANY: dict[str, Callable[[Path, File, Source], Iterator[Raw]]] = {
    "jsonl": lambda path, file, source: json_lines.read(path, file, source.text_key),
    "parquet": lambda path, file, source: parquet_files.read(path, file, source.text_key),
    "warc": lambda path, file, source: warc.read(path),
    "python": lambda path, file, source: programming.documents(path, source.path),
    "law": lambda path, file, source: domains.law.documents(path, source.path),
    "medicine": lambda path, file, source: domains.medicine.documents(path),
}
