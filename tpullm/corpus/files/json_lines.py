"""JSON Lines → documents: the user's own, and those of FineWeb, Dolma and datatrove as they are.

What the records of others' corpora say of a document beside its text: address, date, licence, language, identity.

FineWeb keeps it in columns, Dolma and datatrove in `metadata`, RedPajama in `meta`, OSCAR in `warc_headers`. One reader
understands them all by the names of their fields, so nobody has to say which of them a file comes from.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpullm.corpus.document import BROKEN_RECORD, NOT_UTF8, TOO_LARGE, Raw
from tpullm.corpus.files import encodings, opened
from tpullm.corpus.files.source_files import File
from tpullm.system.log import one_line

# The names of a fact, best first.
URL = ("url", "source_url", "warc_url", "warc-target-uri", "target_uri")
DATE = (
    "date", "created", "published", "date_published", "timestamp", "warc_date", "warc-date", "date_download",
    "crawl_date", "added",
)  # fmt: skip
LICENCE = ("license", "licence", "licenses", "license_type", "max_stars_repo_licenses", "detected_licenses")
LANGUAGE = ("language", "lang", "warc-identified-content-language")
IDENTITY = ("id", "warc-record-id", "uuid", "doc_id")
NAMES = {name: fact for fact in (URL, DATE, LICENCE, LANGUAGE, IDENTITY) for name in fact}
INNER = ("metadata", "meta", "warc_headers")
MOST_CHARACTERS = 2_000
_LANGUAGE = re.compile(r"([A-Za-z]{2,3})([-_][A-Za-z]{2,8})*")


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a record says: the `url`, `date`, `licence` and `language` of `Raw`, and `id`; "" for what is missing."""
    found: dict[str, Any] = {}
    for part in _parts(record):
        for name, value in part.items():
            if value and isinstance(name, str) and (lower := name.lower()) in NAMES:
                found.setdefault(lower, value)
    return {
        "url": _first(found, URL),
        "date": _first(found, DATE),
        "licence": _first(found, LICENCE),
        "language": language(_first(found, LANGUAGE)),
        "id": _first(found, IDENTITY),
    }


def _parts(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The record and what it keeps in a record of its own, which RedPajama writes as JSON in a string."""
    yield record
    for name in INNER:
        inner = record.get(name)
        if isinstance(inner, str) and inner.startswith("{"):
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError):
                continue
        if isinstance(inner, Mapping):
            yield inner


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if name in found and (text := _text(found[name]))), "")


def _text(value: Any) -> str:
    """A value as one line; several values of a list side by side."""
    if isinstance(value, str) and len(value) <= MOST_CHARACTERS and value.isascii() and value.isprintable():
        return " ".join(value.split())  # nearly all
    values = value if isinstance(value, list) else [value]
    texts = [str(one) for one in values[:20] if isinstance(one, str | int | float) and not isinstance(one, bool)]
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


_KEYS_SHOWN = 200  # characters


def read(path: Path, file: File, text_key: str) -> Iterator[Raw]:
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
            yield _document(line, text_key, f"line {number}" if not file.is_range else f"line at byte {place:,}")


def _document(line: bytes | None, key: str, where: str) -> Raw:
    if line is None:
        return Raw(dropped=TOO_LARGE, record=where, problem=f"is longer than {opened.MOST_RECORD_BYTES >> 20} MiB")
    text = encodings.decode(line)
    if text is None:
        return Raw(dropped=NOT_UTF8.dropped, record=where)
    try:
        record = json.loads(text)
    except ValueError as error:
        return broken(where, f"is not JSON ({getattr(error, 'msg', error)})")
    except RecursionError:
        return broken(where, "is not JSON (it is nested too deep)")
    return document(record, key, where)


def broken(where: str, problem: str) -> Raw:
    """A record that is not what its format says."""
    return Raw(dropped=BROKEN_RECORD, record=where, problem=problem)


def document(record: Any, key: str, where: str) -> Raw:
    """The document of one record; null is an empty one."""
    if not isinstance(record, dict) or key not in record:
        keys = one_line(", ".join(record), _KEYS_SHOWN) if isinstance(record, dict) else ""
        there = f"its keys are {keys}" if isinstance(record, dict) else "it is not an object"
        return broken(where, f"has no {key!r}: {there}; set text_key of the source to the field that holds the text")
    text = record[key]
    if text is not None and not isinstance(text, str):
        return broken(where, f"has no text in {key!r} but {type(text).__name__}; set text_key to another field")
    facts = facts_of(record)
    identity = facts.pop("id")
    return Raw(encodings.unix_lines(text or ""), record=f"{where} ({identity})" if identity else where, **facts)
