"""Records of JSON Lines and Parquet → documents: the user's own, and those of FineWeb, Dolma and datatrove as they are.

A record says more of a document than its text: address, date, licence, language, identity. FineWeb keeps them in
columns, Dolma and datatrove in `metadata`, RedPajama in `meta`, OSCAR in `warc_headers`. One reader understands them
all by the names of their fields, so nobody has to say which of them a file comes from.

Parquet is read in a child with limits, a few rows at a time: a few bytes may say that they hold gigabytes, and the
library in C++ may end with its process.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpullm.corpus.document import BROKEN_RECORD, NOT_UTF8, TOO_LARGE, UNREADABLE, Raw
from tpullm.corpus.files import encodings, opened, talks
from tpullm.corpus.files.source_files import File
from tpullm.system.log import one_line

# The names of a fact, best first.
FACTS = {
    "url": ("url", "source_url", "warc_url", "warc-target-uri", "target_uri"),
    "date": (
        "date", "created", "published", "date_published", "timestamp", "warc_date", "warc-date", "date_download",
        "crawl_date", "added",
    ),
    "licence": ("license", "licence", "licenses", "license_type", "max_stars_repo_licenses", "detected_licenses"),
    "language": ("language", "lang", "warc-identified-content-language"),
    "id": ("id", "warc-record-id", "uuid", "doc_id"),
}  # fmt: skip
NAMES = frozenset(name for names in FACTS.values() for name in names)
INNER = ("metadata", "meta", "warc_headers")
MOST_CHARACTERS = 2_000
_LANGUAGE = re.compile(r"([A-Za-z]{2,3})([-_][A-Za-z]{2,8})*")
BATCH_ROWS = 1_000
BATCH_BYTES = 1 << 24  # of the text of a batch
BUFFER_BYTES = 1 << 20  # read at once of a column: a group of rows may have gigabytes


def read_json_lines(path: Path, file: File, text_key: str) -> Iterator[Raw]:
    """The documents of a file, or of the part of it that `file` names.

    A line that holds none is told as such: a user's file must not lose a line silently.

    Args:
        path: where the bytes are.
        file: which of them are read.
        text_key: the field with the text.
    """
    with opened.open_bytes(path) as stream:
        for number, (place, line) in enumerate(opened.lines(stream, file.start, file.stop), 1):
            if line is not None and not line.strip():
                continue
            where = f"line {number}" if not file.is_range else f"line at byte {place:,}"
            text = None if line is None else encodings.decode(line)
            if text is None:
                problem = f"is longer than {opened.MOST_RECORD_BYTES >> 20} MiB" if line is None else ""
                yield Raw(dropped=TOO_LARGE if line is None else NOT_UTF8.dropped, record=where, problem=problem)
                continue
            try:
                yield record_document(json.loads(text), text_key, where)
            except ValueError as error:
                yield _broken_record(where, f"is not JSON ({getattr(error, 'msg', error)})")
            except RecursionError:
                yield _broken_record(where, "is not JSON (it is nested too deep)")


def read_parquet(path: Path, file: File, text_key: str) -> Iterator[Raw]:
    """The documents of the row groups that begin in the part of the file that `file` names.

    Raises:
        Unreadable: the file is no Parquet, or has no such column.
    """
    try:
        names, groups = opened.in_child(f"{__name__}:look", str(path))
    except opened.Unreadable as error:
        raise opened.Unreadable(f"is not Parquet or is cut off ({error}); copy or download it again") from None
    if text_key not in names and not talks.has_keys(names):
        columns = ", ".join(names)
        raise opened.Unreadable(f"has no column {text_key!r}: its columns are {columns}; set text_key of the source")
    first = 0
    for number, (begin, rows_there, size) in enumerate(groups):
        if begin >= file.start and (file.stop is None or begin < file.stop):
            yield from _row_group_documents(str(path), number, first, rows_there, size, text_key)
        first += rows_there


def _row_group_documents(path: str, number: int, first: int, count: int, size: int, text_key: str) -> Iterator[Raw]:
    """The documents of one row group, whose rows are numbered from `first`."""
    batch = max(1, min(BATCH_ROWS, BATCH_BYTES * count // max(size, 1)))
    taken = 0
    while taken < count:
        try:
            found = opened.in_child(f"{__name__}:rows", path, number, text_key, batch, taken, first)
        except opened.Unreadable as error:
            if batch > 1:  # a text of a dictionary counts once in the size of its group, and takes memory for each row
                batch = 1
                continue
            where = f"rows from {first + taken + 1} to {first + count}"
            yield Raw(dropped=UNREADABLE, record=where, problem=f"cannot be read ({error})")
            return
        yield from (Raw(*texts, tuple(said)) for *texts, said in found)
        taken += len(found)
        if not found:
            return


def _broken_record(where: str, problem: str) -> Raw:
    """A record that is not what its format says."""
    return Raw(dropped=BROKEN_RECORD, record=where, problem=problem)


def record_document(record: Any, key: str, where: str) -> Raw:
    """The document of one record; null is an empty one. Without the key, a conversation is one."""
    if isinstance(record, dict) and key not in record and (talk := talks.labelled(record)):
        return Raw(talks.as_text(talk), record=where, talks=(talk,))
    if not isinstance(record, dict) or key not in record:
        is_object = isinstance(record, dict)
        there = f"its keys are {one_line(', '.join(record), 200)}" if is_object else "it is not an object"
        advice = "set text_key of the source to the field that holds the text"
        return _broken_record(where, f"has no {key!r}: {there}; {advice}")
    text = record[key]
    if isinstance(text, bytes):  # as Parquet may have it
        text = text.decode("utf-8", "surrogateescape")
    if text is not None and not isinstance(text, str):
        return _broken_record(where, f"has no text in {key!r} but {type(text).__name__}; set text_key to another field")
    facts = facts_of(record)
    identity = facts.pop("id")
    return Raw(encodings.unix_lines(text or ""), record=f"{where} ({identity})" if identity else where, **facts)


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a record says: the `url`, `date`, `licence` and `language` of `Raw`, and `id`; "" for what is missing."""
    parts = [record]
    for name in INNER:
        inner = record.get(name)
        if isinstance(inner, str) and inner.startswith("{"):  # RedPajama writes JSON in a string
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError):
                continue
        if isinstance(inner, Mapping):
            parts.append(inner)
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if value and isinstance(name, str) and (lower := name.lower()) in NAMES:
                found.setdefault(lower, value)
    facts = {
        fact: next((line for name in names if name in found and (line := _value_as_line(found[name]))), "")
        for fact, names in FACTS.items()
    }
    return facts | {"language": language(facts["language"])}


def _value_as_line(value: Any) -> str:
    """A value as one line; several values of a list side by side."""
    values = value if isinstance(value, list) else [value]
    simple = [one for one in values[:20] if not isinstance(one, bool | list | Mapping | None)]
    texts = [one.decode("utf-8", "ignore") if isinstance(one, bytes) else str(one) for one in simple]
    line = " ".join(", ".join(texts)[:MOST_CHARACTERS].split())
    return line.encode("utf-8", "ignore").decode()  # without halves of surrogate pairs


def language(name: str) -> str:
    """A language as this project writes it: `ja` for `jpn`, `ja-JP` and `jpn_Jpan`; "" for any other word."""
    match = _LANGUAGE.fullmatch(name)
    if not match:
        return ""
    code = match[1].lower()
    if len(code) == 2:
        return code
    from babel.core import get_global

    short = get_global("language_aliases").get(code, "")
    return short if len(short) == 2 else ""


def look(path: str) -> list:
    """In the child: the columns, and of each row group where it begins, how many rows it has, and its size."""
    _parquet_file.cache_clear()  # the file may be another one by now
    _numbered_parquet_rows.cache_clear()
    table = _parquet_file(path)
    groups = []
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        offsets = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        groups.append([min(offsets, default=0), group.num_rows, group.total_byte_size])
    return [table.schema_arrow.names, groups]


def rows(path: str, group: int, text_key: str, batch: int, taken: int, first: int) -> list[list[str]]:
    """In the child: the documents of a row group after the first `taken`, at most `batch`, each as the fields of `Raw`.

    The rows of the group are numbered from `first`.
    """
    found = list(itertools.islice(_numbered_parquet_rows(path, group, text_key, batch), batch))
    if not found or found[0][0] != taken:  # the answer of the call before was lost
        _numbered_parquet_rows.cache_clear()
        found = list(itertools.islice(_numbered_parquet_rows(path, group, text_key, batch), taken, taken + batch))
    documents = (record_document(row, text_key, f"row {first + number + 1}") for number, row in found)
    return [list(dataclasses.astuple(document)) for document in documents]


@functools.lru_cache(1)
def _numbered_parquet_rows(path: str, group: int, text_key: str, batch: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of one row group with their numbers, one after the other."""
    table = _parquet_file(path)
    names = table.schema_arrow.names
    kept = {text_key, *INNER} if text_key in names else {*talks.KEYS, *INNER}
    columns = [name for name in names if name in kept or name.lower() in NAMES]
    batches = table.iter_batches(batch_size=batch, row_groups=[group], columns=columns, use_threads=False)
    return enumerate(row for one in batches for row in _python_rows(one, text_key))


@functools.lru_cache(1)
def _parquet_file(path: str) -> Any:
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve memory that they never use
    return pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)


def _python_rows(batch: Any, text_key: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # of one row; Parquet does not look
        if len(batch) == 1:
            return [{text_key: "\udc80"}]  # no text, and known as such
        return [row for place in range(len(batch)) for row in _python_rows(batch.slice(place, 1), text_key)]
