"""Finds the copies in the whole corpus: documents that share a key with an earlier one, in bounded memory.

Like a sort that is done by many, in rounds of tasks:

    scatter   a group of parts   → the first document of each key in the group, as entries (key, rank) sorted by key
    gather    a range of keys    → for each group, the first document in the corpus of its keys, where that is another
    pair      a group of parts   → its pairs: a document, and the first one with the same key

So a document has one pair at most for each of its keys, and a million pages of one template are a million pairs. A
document with the exact key of an earlier one is a copy. One that shares a band with it may be one: `near_copies.py`
compares the texts of the pairs.

Before, `place` decides of each part what the corpus as a whole decides, limits and what is held out. It reads the
summaries of the parts alone, so it is quick for any corpus.

Documents are compared with earlier ones, whether those are dropped or not. So what happens to a document depends on the
documents with its keys alone, and the result is the same for any groups, ranges and processes. What is held out is
earlier than what is trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tpullm.corpus import dedup, document_files, held_out, tasks
from tpullm.corpus.document_files import APART, BEYOND, EXACT, USED, Part
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
        few: whether the source has so few documents that parts of them are held out (`held_out.held_out_stretches`).
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
        marks[named | (ids < np.uint64(held_out.held_out_bound(self.fraction)))] = APART
        marks[~named & (np.cumsum(~named) > self.room)] = BEYOND
        if self.alone != NO_ROW:
            marks[self.alone] = APART
        return marks


def placed_parts(found: Sequence[Source], done: Sequence[Task], config: CorpusConfig) -> list[Placed]:
    """The places of the parts of finished tasks, which are in the order of the sources."""
    placed: list[Placed] = []
    start = 0
    for source in found:
        own = [(task, tasks.part_summary(task)) for task in done if task.source is source]
        training = [summary["documents"] - summary["held_out"] for _, summary in own]
        total = min(sum(training), source.documents or sum(training))
        divides = not source.held_out and config.held_out_fraction > 0
        few = divides and total < held_out.FEW
        fraction = config.held_out_fraction if divides and not few else 0.0
        rooms = np.clip(total - np.cumsum([0, *training[:-1]]), 0, training).tolist() if own else []
        alone = _lowest_hash_document(own, training, rooms, fraction) if fraction else (NO_ROW, NO_ROW)
        for number, ((task, summary), room) in enumerate(zip(own, rooms, strict=True)):
            row, lines = alone[1] if number == alone[0] else NO_ROW, summary["lines"]
            placed.append(Placed(task.part, source, start, summary["documents"], room, fraction, few, row, lines))
            start += summary["documents"]
    return placed


def _lowest_hash_document(own: list, training: list[int], rooms: list[int], fraction: float) -> tuple[int, int]:
    """The part and the row of the document with the lowest hash, if it is not in the held-out fraction."""
    candidates = []
    for number, ((task, summary), room) in enumerate(zip(own, rooms, strict=True)):
        lowest = summary["lowest"]
        if room != training[number]:  # of its first `room` documents for training
            ids, named = tasks.arrays_of_part(task.part, "ids", "held_out")
            rows = np.flatnonzero(~named)[:room]
            lowest = min(zip(ids[rows].tolist(), rows.tolist(), strict=True), default=None)
        if lowest:
            candidates.append((lowest[0], number, lowest[1]))
    id_, number, row = min(candidates)
    return (number, row) if id_ >= held_out.held_out_bound(fraction) else (NO_ROW, NO_ROW)


# What a process holds, so that the memory is the same from 100 MB of text on. Files have groups times ranges slices.
# 12 MB of entries, and four times as much while they are sorted; 205 MB of sketches if all are long and in pairs
GROUP_DOCUMENTS = 50_000
GROUP_LINES = 1_000_000  # 16 MB of counts, and four times as much while they are sorted
RANGE_ENTRIES = RANGE_LINES = 1_000_000
ENTRIES = 1 + dedup.BANDS  # of a document: one for exact copies, and one for each band

# A rank orders documents: what the recipe holds out by name, what is held out by hash, what is trained on; in each the
# sources that keep their copies come last, then the number in the corpus decides.
NAMED, HELD_OUT, TRAINING = (np.uint64(number << 62) for number in range(3))
KEEPS_COPIES = np.uint64(1 << 61)
LATE = TRAINING + KEEPS_COPIES  # from here on: training documents that are compared with what is held out alone
NUMBER = np.uint64((1 << 61) - 1)
_IS_EXACT = np.uint64(1)  # the lowest bit of a key


@dataclass(frozen=True)
class _Numbered:
    """What a task of a round takes.

    Args:
        number: of the group or range.
        folder: where the rounds leave their files.
        most: in how many documents a line may stand; 0 is no limit.
        starts: the number of the first document of each group, and that after the last document.
    """

    number: int
    folder: Path
    most: int
    starts: tuple[int, ...]

    @property
    def bounds(self) -> np.ndarray:
        """The starts as an array: uint64 [groups + 1]."""
        return np.array(self.starts, np.uint64)

    def file(self, what: str) -> Path:
        """What a round leaves: see the functions of the rounds."""
        return group_or_range_file(self.folder, what, self.number)


def group_or_range_file(folder: Path, what: str, number: int) -> Path:
    """A file of a group or a range."""
    return folder / f"{what}-{number:06}"


@dataclass(frozen=True)
class Group(_Numbered):
    """Consecutive parts.

    Args:
        placed: its parts.
        marks: the file of its marks.
        ranges: how many ranges of keys there are, a power of 2.
        line_ranges: how many ranges of the hashes of lines; 0 if lines are not compared.
    """

    placed: tuple[Placed, ...]
    marks: Path
    ranges: int
    line_ranges: int

    @property
    def start(self) -> int:
        """The number of its first document in the corpus."""
        return self.placed[0].start

    @property
    def documents(self) -> int:
        """How many documents it has."""
        return self.starts[self.number + 1] - self.start

    @property
    def lines(self) -> int:
        """How many lines its parts have kept."""
        return sum(one.lines for one in self.placed)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """The places in the group of documents by their numbers in the corpus."""
        return numbers.astype(np.int64) - self.start

    def marked(self) -> list[Part]:
        """Its parts, with where their marks are."""
        name = f"{self.marks.parent.name}/{self.marks.name}"
        places = ((one, one.start - self.start) for one in self.placed)
        return [replace(one.part, marked=(name, start, start + one.documents)) for one, start in places]

    def split(self, marks: np.ndarray) -> Iterator[tuple[Placed, np.ndarray]]:
        """Its parts, each with its own of the marks of the group."""
        for one in self.placed:
            yield one, marks[one.start - self.start :][: one.documents]


@dataclass(frozen=True)
class Range(_Numbered):
    """One of the ranges of keys, or of the hashes of lines, which have the same length."""

    def slices(self, what: str, width: int) -> list[np.ndarray]:
        """What each group has in this range."""
        files = (group_or_range_file(self.folder, what, group) for group in range(len(self.starts) - 1))
        return [document_files.read_range(file, self.number, width) for file in files]


def divide(
    placed: Sequence[Placed], folder: Path, marks: Path, most: int
) -> tuple[list[Group], list[Range], list[Range]]:
    """The groups of all parts, the ranges of the keys of their documents, and those of the hashes of their lines.

    A group has consecutive parts of at least `GROUP_DOCUMENTS` or `GROUP_LINES`, a range about `RANGE_ENTRIES` entries
    or fewer.
    """
    grouped: list[list[Placed]] = []
    documents, lines = GROUP_DOCUMENTS, 0
    for one in placed:
        if documents >= GROUP_DOCUMENTS or lines >= GROUP_LINES:
            grouped.append([])
            documents, lines = 0, 0
        grouped[-1].append(one)
        documents, lines = documents + one.documents, lines + one.lines
    documents, lines = (sum(getattr(one, what) for one in placed) for what in ("documents", "lines"))
    count = document_files.count(ENTRIES * documents, RANGE_ENTRIES) if placed else 0
    line_count = document_files.count(lines, RANGE_LINES) if lines else 0
    facts = (folder, most, (*(own[0].start for own in grouped), documents))
    named = ((number, marks / f"{number:06}.npy", tuple(own)) for number, own in enumerate(grouped))
    groups = [Group(number, *facts, own, path, count, line_count) for number, path, own in named]
    ranges, line_ranges = ([Range(number, *facts) for number in range(n)] for n in (count, line_count))
    return groups, ranges, line_ranges


def scatter(group: Group) -> None:
    """Write the entries of a group that other groups may have to know: the first one of each key."""
    entries, late = _entries(group)
    rows = np.concatenate([_firsts(entries), _firsts(late)])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    document_files.write(group.file("entries"), document_files.range_bounds(rows[:, 0], group.ranges), [rows])


def gather(own: Range) -> None:
    """Write (key, rank) of the first documents of the corpus with a key, for the groups that have a later one."""
    entries = _sorted(np.concatenate(own.slices("entries", 2)))
    firsts = _firsts(entries)  # late ranks are the highest
    earlier = firsts[np.searchsorted(firsts[:, 0], entries[:, 0]), 1]
    group = np.searchsorted(own.bounds, entries[:, 1] & NUMBER, side="right")
    first_group = np.searchsorted(own.bounds, earlier & NUMBER, side="right")
    is_told = group != first_group
    rows = _sorted_once(np.stack([group.astype(np.uint64), entries[:, 0], earlier], axis=1)[is_told])
    starts = np.searchsorted(rows[:, 0], np.arange(1, len(own.starts) + 1, dtype=np.uint64))
    document_files.write(own.file("firsts"), starts, [rows[:, 1:]])


def pair(group: Group) -> None:
    """Write the pairs of a group, the numbers of their documents, by the group that has them, and the likely copies.

    A pair is two numbers of documents, the later one first: uint64 [pairs, 2], sorted. Equal ones mean that the
    document is an exact copy; it has no other pair. The likely copies are the documents that share two bands
    with one earlier document, by their numbers: uint64 [documents]. Of texts that are alike by 0.8 88 % do, of those by
    0.7 38 %, by 0.6 7 %.
    """
    entries, late = _entries(group)
    told = [
        document_files.read_range(group_or_range_file(group.folder, "firsts", number), group.number, 2)
        for number in range(group.ranges)
    ]
    firsts = _firsts(_sorted(np.concatenate([_firsts(entries), _firsts(late), *told])))
    rows = np.concatenate([entries, late])
    earlier = firsts[np.searchsorted(firsts[:, 0], rows[:, 0]), 1]
    keys, ranks = rows.T
    keeps = (ranks & KEEPS_COPIES) > 0
    # What the recipe names as held out stays. A source that keeps its copies has none of what is held out.
    is_copy = (earlier != ranks) & (ranks >= HELD_OUT) & np.where(keeps, (ranks >= LATE) & (earlier < TRAINING), True)
    numbers, is_exact = ranks & NUMBER, (keys & _IS_EXACT) > 0
    exact = np.unique(numbers[is_copy & is_exact])
    near = np.stack([numbers, earlier & NUMBER], axis=1)[is_copy & ~is_exact]
    near = _sorted(near[~np.isin(near[:, 0], exact)])
    likely = np.unique(near[1:, 0][(near[1:] == near[:-1]).all(axis=1)])
    document_files.write(group.file("likely"), np.array([0, len(likely)]), [likely])
    pairs = _sorted_once(np.concatenate([near, np.stack([exact, exact], axis=1)]))
    document_files.write(group.file("pairs"), np.array([0, len(pairs)]), [pairs])
    needed = np.unique(near)
    document_files.write(group.file("needed"), np.searchsorted(needed, group.bounds), [needed])


def marks_and_pairs(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The marks of the documents of a group after exact copies are found, uint8 [documents], and its other pairs."""
    pairs = document_files.read_range(group.file("pairs"), 0, 2)
    is_exact = pairs[:, 0] == pairs[:, 1]
    marks = np.concatenate([one.marks(*tasks.arrays_of_part(one.part, "ids", "held_out")) for one in group.placed])
    marks[group.places(pairs[is_exact, 0])] = EXACT
    return marks, pairs[~is_exact]


def _entries(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The entries of the documents of a group, (key, rank), sorted; those of late ranks apart."""
    own = [np.zeros((0, 2), np.uint64)]
    for one in group.placed:
        names = ("ids", "keys", "signed", "bands", "held_out")
        ids, keys, signed, bands_DG, named = tasks.arrays_of_part(one.part, *names)
        marks = one.marks(ids, named)
        is_training = (marks == USED) & (not one.few)
        ranks = np.arange(one.start, one.start + one.documents, dtype=np.uint64)
        ranks |= np.where(named, NAMED, np.where(is_training, TRAINING, HELD_OUT))
        ranks |= KEEPS_COPIES * np.uint64(not one.source.deduplicate)
        own.append(np.stack([keys | _IS_EXACT, ranks], axis=1)[marks != BEYOND])
        compared = (marks[signed] != BEYOND) & (ranks[signed] < LATE)
        near = np.stack(np.broadcast_arrays(bands_DG & ~_IS_EXACT, ranks[signed][:, None]), axis=2)
        own.append(near[compared].reshape(-1, 2))
    entries = _sorted(np.concatenate(own))
    is_late = entries[:, 1] >= LATE
    return entries[~is_late], entries[is_late]


def _sorted(entries: np.ndarray) -> np.ndarray:
    """Entries sorted by key, then by rank."""
    return entries[np.lexsort(entries.T[::-1])]


def _firsts(entries: np.ndarray) -> np.ndarray:
    """Of sorted entries the first of each key."""
    is_first = np.ones(len(entries), bool)
    is_first[1:] = entries[1:, 0] != entries[:-1, 0]
    return entries[is_first]


def _sorted_once(rows: np.ndarray) -> np.ndarray:
    """The different rows, sorted: `np.unique` of rows takes ten times as long."""
    rows = _sorted(rows)
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[is_new]
