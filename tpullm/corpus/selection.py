"""What the corpus as a whole decides of each part before documents are compared: limits, and what is held out.

It takes the summaries of the parts alone, so it is quick for any corpus, and every share comes to the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpullm.corpus import split, tasks
from tpullm.corpus.document_files import APART, BEYOND, USED, Part
from tpullm.corpus.tasks import Task
from tpullm.recipe.schema import CorpusConfig, Source

NO_ROW = -1


@dataclass(frozen=True)
class Placed:
    """A part and its place in the corpus.

    Args:
        part: the part.
        source: its source.
        start: the number of its first document in the corpus.
        documents: how many it has.
        room: how many of its documents for training are within the limit of the source.
        fraction: which documents are held out by their hash.
        few: whether its source has so few documents that stretches of them are held out (`split.stretches`).
        alone: the row that is held out since the hash of no document of the source is in the fraction.
        lines: how many lines its documents have kept, to be compared.
    """

    part: Part
    source: Source
    start: int
    documents: int
    room: int
    fraction: float = 0.0
    few: bool = False
    alone: int = NO_ROW
    lines: int = 0

    def marks(self, ids: np.ndarray, named: np.ndarray) -> np.ndarray:
        """The marks of its documents before they are compared: uint8 [documents].

        Args:
            ids: the first 8 bytes of the hashes of the documents, uint64 [documents].
            named: which the recipe holds out, bool [documents].
        """
        marks = np.full(self.documents, USED, np.uint8)
        marks[named | (ids < np.uint64(split.bound(self.fraction)))] = APART
        marks[~named & (np.cumsum(~named) > self.room)] = BEYOND
        if self.alone != NO_ROW:
            marks[self.alone] = APART
        return marks


def place(found: Sequence[Source], done: Sequence[Task], config: CorpusConfig) -> list[Placed]:
    """The places of the parts of finished tasks, which are in the order of the sources."""
    placed: list[Placed] = []
    start = 0
    for source in found:
        own = [(task, tasks.summary(task)) for task in done if task.source is source]
        for one in _of_source(source, own, config, start):
            placed.append(one)
            start += one.documents
    return placed


def _of_source(source: Source, own: list[tuple[Task, dict[str, Any]]], config: CorpusConfig, start: int):
    training = [summary["documents"] - summary["held_out"] for _, summary in own]
    total = min(sum(training), source.documents or sum(training))
    divides = not source.held_out and config.held_out_fraction > 0
    few = divides and total < split.FEW
    fraction = config.held_out_fraction if divides and not few else 0.0
    rooms = np.clip(total - np.cumsum([0, *training[:-1]]), 0, training).tolist() if own else []
    lonely = _alone(own, training, rooms, fraction) if fraction else (NO_ROW, NO_ROW)
    for number, ((task, summary), room) in enumerate(zip(own, rooms, strict=True)):
        alone = lonely[1] if number == lonely[0] else NO_ROW
        lines = summary.get("lines", 0)
        yield Placed(task.part, source, start, summary["documents"], room, fraction, few, alone, lines)
        start += summary["documents"]


def _alone(own: list, training: list[int], rooms: list[int], fraction: float) -> tuple[int, int]:
    """The part and the row of the document with the lowest hash, if it is not in the held-out fraction."""
    candidates = []
    for number, ((task, summary), room) in enumerate(zip(own, rooms, strict=True)):
        lowest = summary["lowest"] if room == training[number] else _lowest_of_first(task, room)
        if lowest:
            candidates.append((lowest[0], number, lowest[1]))
    id_, number, row = min(candidates)
    return (number, row) if id_ >= split.bound(fraction) else (NO_ROW, NO_ROW)


def _lowest_of_first(task: Task, room: int) -> tuple[int, int] | None:
    """The lowest id of the first `room` documents for training of a part, and its row."""
    ids, named = tasks.arrays(task.part, "ids", "held_out")
    rows = np.flatnonzero(~named)[:room]
    return min(zip(ids[rows].tolist(), rows.tolist(), strict=True), default=None)
