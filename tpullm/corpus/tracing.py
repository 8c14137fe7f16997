"""Finds the documents of a corpus that hold a passage, or have an address or a hash, with what became of them."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.corpus import document_files
from tpullm.corpus.document_files import MARKS, USED, Part

AROUND = 40  # characters before and after a passage, where it is shown


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Args:
        source: the name of its source.
        fate: `train`, `held_out`, or why it was dropped.
        number: its number among the training documents of its source; -1 if it is not trained on.
        facts: its hash, language, licence, file, record, url and date, as far as they were kept.
        shown: the passage with some text around it, or the beginning of the document.
    """

    source: str
    fate: str
    number: int
    facts: dict[str, str]
    shown: str


@dataclass(frozen=True)
class Wanted:
    """What is looked for: documents that hold `passage`, or have this `url` or `hash` (or its beginning)."""

    passage: str = ""
    url: str = ""
    hash: str = ""

    def mask(self, table: Any) -> Any:
        """Which rows of a table of documents are wanted: a boolean array of pyarrow."""
        import pyarrow.compute as compute

        if self.passage:
            return compute.match_substring(table["text"], self.passage)
        if self.url:
            return compute.equal(table["url"], self.url)
        return compute.starts_with(table["hash"], self.hash)


def find(documents: Path, wanted: Wanted, workers: int, progress: Callable[[], None] = lambda: None) -> list[Hit]:
    """The documents of a corpus, in their order; those that were dropped by themselves have no text to look in.

    Args:
        workers: threads, each of which reads a part at once.
        progress: called after each part.
    """
    parts = document_files.parts(documents)
    found: list[Hit] = []
    before: Counter[str] = Counter()  # documents to train on in earlier parts, by source
    with ThreadPoolExecutor(workers) as threads:
        hits_of_parts = threads.map(lambda part: _hits_in_part(part, wanted), parts)
        for part, hits in zip(parts, hits_of_parts, strict=True):
            found += [replace(hit, number=hit.number + before[part.source]) if hit.number >= 0 else hit for hit in hits]
            before[part.source] += int(np.count_nonzero(part.marks() == USED))
            progress()
    return found


def _hits_in_part(part: Part, wanted: Wanted) -> list[Hit]:
    """The hits in one part; the number of a training document is that in the part."""
    marks, hits, start = part.marks(), [], 0
    numbers = np.cumsum(marks == USED) - 1
    for table in document_files.tables(part.path):
        rows = np.flatnonzero(wanted.mask(table))
        for row, facts in zip((start + rows).tolist(), table.take(rows).to_pylist(), strict=True):
            number = int(numbers[row]) if marks[row] == USED else -1
            hits.append(_hit_in_document(part, MARKS[marks[row]], number, facts, wanted, facts.pop("text")))
        start += len(table)
    if not wanted.passage:
        for facts in document_files.read_dropped(part):
            if (wanted.url and facts["url"] == wanted.url) or (wanted.hash and facts["hash"].startswith(wanted.hash)):
                hits.append(_hit_in_document(part, facts.pop("reason"), -1, facts, wanted, facts.pop("beginning")))
    return hits


def _hit_in_document(part: Part, fate: str, number: int, facts: dict[str, str], wanted: Wanted, text: str) -> Hit:
    place = max(0, text.find(wanted.passage) - AROUND)
    shown = text[place : place + len(wanted.passage) + 2 * AROUND]
    licence = facts["licence"] or part.licence
    return Hit(part.source, fate, number, {**facts, "licence": licence}, " ".join(shown.split()))
