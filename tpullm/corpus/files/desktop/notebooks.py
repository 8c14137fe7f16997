"""Notebooks of Jupyter and subtitles of films → text."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files import encodings, opened

MOST_BYTES = 1 << 26
_TIME = re.compile(r"(?:\d+:)?\d\d:\d\d[.,]\d{2,3} *--> *(?:\d+:)?\d\d:\d\d[.,]\d{2,3}.*")
_TAG = re.compile(r"<[^<>]{1,80}>|\{\\[^{}]{1,80}\}")


def _bytes(path: Path) -> bytes:
    with opened.open_bytes(path) as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise opened.Unreadable(f"is larger than {MOST_BYTES >> 20} MiB; save its text as .txt")
    return data


def notebook(path: Path) -> Iterator[Raw]:
    """The cells of a notebook, text and code. What the code printed is left out."""
    try:
        found = json.loads(_bytes(path))
        sheets = [found, *found.get("worksheets", [])]  # version 3 has sheets
        cells = [cell for sheet in sheets for cell in sheet.get("cells", [])]
        texts = ["".join(cell.get("source", cell.get("input", ""))) for cell in cells]
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise opened.Unreadable(f"is no notebook ({error}); save it again as .ipynb") from None
    yield Raw("\n\n".join(filter(str.strip, texts)) + "\n")


def subtitles(path: Path) -> Iterator[Raw]:
    """What is said, a line for each subtitle (SubRip, WebVTT), without numbers, times and marks."""
    found = encodings.decode_text(_bytes(path))
    if found is None:
        raise opened.Unreadable(encodings.NOT_DECODED)
    said = []
    for block in re.split(r"\n\s*\n", found.text):
        lines = block.strip().split("\n")
        at = next((number for number, line in enumerate(lines[:2]) if _TIME.fullmatch(line.strip())), None)
        if at is not None:
            said.append(" ".join(filter(None, (_TAG.sub("", line).strip() for line in lines[at + 1 :]))))
    lines = [line for line, _ in itertools.groupby(filter(None, said))]
    yield Raw("\n".join(lines) + "\n", found.language, encoding=found.encoding)
