"""JSON Lines → documents: the user's own, and those of FineWeb, Dolma and datatrove as they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.corpus.document import BROKEN_RECORD, NOT_UTF8, TOO_LARGE, Raw
from tpullm.corpus.files import encodings, fields, opened
from tpullm.corpus.files.source_files import File
from tpullm.log import one_line

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
    facts = fields.facts(record)
    identity = facts.pop("id")
    return Raw(encodings.unix_lines(text or ""), record=f"{where} ({identity})" if identity else where, **facts)
