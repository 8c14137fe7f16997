"""Parts of made documents on the disk, as the tasks of `collect` leave them for the rounds over the whole corpus."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from tpullm.corpus import dedup, document_files, near_copies, reduce, repeated_lines
from tpullm.corpus.dedup import splitmix64
from tpullm.corpus.document_files import Part
from tpullm.corpus.reduce import Placed
from tpullm.recipe.schema import Source
from tpullm.system import storage

LOW, HIGH = 5, 1 << 63  # hashes of what is held out, and of what is not
FRACTION = 2.0**-40


@dataclasses.dataclass(frozen=True)
class Document:
    """A made document: documents with an equal `exact` are exact copies, with an equal number in `near` share a band.

    Its text is the lines of the numbers in `lines` (`line`).
    """

    exact: int
    near: tuple[int, ...]
    apart: bool = False
    named: bool = False
    lines: tuple[int, ...] = (0,)

    @property
    def text(self) -> str:
        """Its text."""
        return "\n".join(map(line, self.lines))


def line(number: int) -> str:
    """A line of 8 words or more that no other number has."""
    letter = chr(ord("a") + number)
    return " ".join(letter * (2 + place) for place in range(8 + number % 3))


@dataclasses.dataclass(frozen=True)
class Made:
    """A part and its documents, and what the corpus decided of it before."""

    documents: tuple[Document, ...]
    keeps: bool = False
    few: bool = False
    room: int = 99
    divides: bool = True
    filters: bool = True
    language: str = "en"

    def signs(self, document: Document) -> bool:
        """Whether a document is compared with near copies, and by its lines."""
        return not self.keeps or document.apart or document.named


def hashed(number: int) -> int:
    """A key that looks like a hash, so that all ranges have some."""
    return int(splitmix64(np.array([number + 1], np.uint64))[0])


def written(folder: Path, made: list[Made]) -> list[Placed]:
    """The parts, with their facts on the disk."""
    placed, start = [], 0
    for number, one in enumerate(made):
        source = Source(f"s{number}", "text", licence="CC0-1.0", deduplicate=not one.keeps, filter=one.filters)
        part = Part(folder, f"{number:032}", source.name, source.licence)
        lines = _write_facts(part, one)
        fraction = FRACTION if one.divides and not one.few else 0.0
        placed.append(Placed(part, source, start, len(one.documents), one.room, fraction, one.few, lines=lines))
        start += len(one.documents)
    return placed


def _write_facts(part: Part, made: Made) -> int:
    documents = made.documents
    with document_files.Writer(part.path) as writer:
        for row, document in enumerate(documents):
            writer.write(document.text, "", made.language, "", "file", f"line {row}", "", "")
    bands = [[hashed(1000 * (band + 1) + key) for band, key in enumerate(document.near)] for document in documents]
    signed = [row for row, document in enumerate(documents) if made.signs(document)]
    lines = [dedup.lines_of(document.text if made.signs(document) else "") for document in documents]
    np.savez(
        part.beside(".npz"),
        ids=np.array([LOW if document.apart else HIGH for document in documents], np.uint64),
        keys=np.array([hashed(document.exact) for document in documents], np.uint64),
        bands=np.array(bands, np.uint64).reshape(len(documents), dedup.BANDS)[signed],
        signed=np.array(signed, np.int64),
        held_out=np.array([document.named for document in documents], bool),
        characters=np.array([len(document.text) for document in documents]),
        kind=np.zeros(len(documents), np.int32),
        kinds=np.array(json.dumps([[made.language, "CC0-1.0"]])),
        lines=np.concatenate([np.zeros(0, dedup.LINE), *lines]),
        line_counts=np.array(list(map(len, lines)), np.int32),
    )
    return sum(map(len, lines))


def marked(folder: Path, placed: list[Placed], most: int = 1) -> tuple[list[list[int]], list[list]]:
    """The marks of each part, and the rows that were counted; a line may stand in `most` documents."""
    groups, ranges, line_ranges = reduce.divide(placed, folder / "work", folder / "marks" / "corpus", most)
    for work, items in (
        (reduce.scatter, groups),
        (reduce.gather, ranges),
        (reduce.pair, groups),
        (repeated_lines.count, groups if line_ranges else ()),
        (repeated_lines.add_up, line_ranges),
        (near_copies.sketch, groups),
        (repeated_lines.mark, groups),
    ):
        for item in items:
            work(item)
    parts = [part for group in groups for part in group.marked()]
    rows = [row for group in groups for row in storage.read_json(group.file("counts"))["rows"]]
    return [part.marks().tolist() for part in parts], rows
