"""What the records of others' corpora say of a document beside its text: address, date, licence, language, identity.

FineWeb keeps it in columns, Dolma and datatrove in `metadata`, RedPajama in `meta`, OSCAR in `warc_headers`. One reader
understands them all by the names of their fields, so nobody has to say which of them a file comes from.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

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


def facts(record: Mapping[str, Any]) -> dict[str, str]:
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
