"""Finds the copies in the whole corpus: documents that share a key with an earlier one, in bounded memory.

Like a sort that is done by many, in rounds of tasks:

    scatter   a group of parts   → entries (key, rank), sorted by key: one for each key, of its first document
    gather    a range of keys    → the documents that are not the first with their key in the whole corpus

`compared` then has the marks of a group, which `repeated_lines.mark` writes. Before, `place` decides of each part what
the corpus as a whole decides, limits and what is held out. It reads the summaries of the parts alone, so it is quick
for any corpus.

A document is dropped if an earlier document has one of its keys, whether that one is dropped or not. So what happens to
a document depends on the documents with its keys alone, a thousand pages of one template cost a thousand steps, and
the result is the same for any groups, ranges and processes. What is held out is earlier than what is trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tpullm.corpus import dedup, document_files, held_out, tasks
from tpullm.corpus.document_files import APART, BEYOND, EXACT, NEAR, USED, Part
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
            row, lines = alone[1] if number == alone[0] else NO_ROW, summary.get("lines", 0)
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
GROUP_DOCUMENTS = 50_000  # 12 MB of entries, and four times as much while they are sorted
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
    """

    number: int
    folder: Path

    def file(self, what: str) -> Path:
        """What a round leaves: `entries`, `lines` and `counts` of a group; `copies` and `repeated` lines of a range."""
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
        return self.placed[-1].start + self.placed[-1].documents - self.start

    @property
    def lines(self) -> int:
        """How many lines its parts have kept."""
        return sum(one.lines for one in self.placed)

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
    """One of the ranges of keys, or of the hashes of lines, which have the same length.

    Args:
        starts: the number of the first document of each group, and that after the last document.
        most: in how many documents a line may stand.
    """

    starts: tuple[int, ...]
    most: int

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
    named = ((number, marks / f"{number:06}.npy", tuple(own)) for number, own in enumerate(grouped))
    groups = [Group(number, folder, own, path, count, line_count) for number, path, own in named]
    starts = (*(group.start for group in groups), documents)
    ranges, line_ranges = ([Range(number, folder, starts, most) for number in range(n)] for n in (count, line_count))
    return groups, ranges, line_ranges


def scatter(group: Group) -> None:
    """Write the entries of a group, (key, rank), and which of its documents repeat another one of the group."""
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
    entries, late = _compared_and_late_entries(np.concatenate(own))
    firsts, which = _first_of_each_key(entries)
    local = np.full(group.documents, USED, np.uint8)
    _mark_copies(local, _repeated_entries(entries, firsts, which), group.start)
    document_files.write_marks(group.file("repeats"), local)
    rows = _sorted_by_key(np.concatenate([firsts, late])) if len(late) else firsts
    document_files.write(group.file("entries"), document_files.range_bounds(rows[:, 0], group.ranges), rows)


def gather(own: Range) -> None:
    """Write which documents are not the first of the corpus with one of the keys of a range."""
    entries, late = _compared_and_late_entries(np.concatenate(own.slices("entries", 2)))
    firsts, which = _first_of_each_key(entries)
    repeats = [_repeated_entries(entries, firsts, which)]
    if len(firsts):  # documents that keep their copies, but repeat one that is held out
        found = firsts[np.minimum(np.searchsorted(firsts[:, 0], late[:, 0]), len(firsts) - 1)]
        repeats.append(late[(found[:, 0] == late[:, 0]) & (found[:, 1] < TRAINING)])
    keys, ranks = np.concatenate(repeats).T
    copies = np.unique((ranks & NUMBER) << np.uint64(1) | (keys & _IS_EXACT))
    starts = np.searchsorted(copies, np.array(own.starts, np.uint64) << np.uint64(1))
    document_files.write(own.file("copies"), starts, copies)


def marks_after_copies(group: Group) -> np.ndarray:
    """The marks of the documents of a group after copies are found: uint8 [documents]."""
    with group.file("repeats").open("rb") as file:
        copies = np.load(file)
    for number in range(group.ranges):
        # Twice the number of a document, and 1 if it is an exact copy.
        found = document_files.read_range(group_or_range_file(group.folder, "copies", number), group.number)[:, 0]
        _mark_copies(copies, np.stack([found & _IS_EXACT, found >> np.uint64(1)], axis=1), group.start)
    marks = np.concatenate([one.marks(*tasks.arrays_of_part(one.part, "ids", "held_out")) for one in group.placed])
    return np.where(copies != USED, copies, marks)


def _compared_and_late_entries(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries that are compared with all others, sorted by key; and those of ranks that are late."""
    is_late = entries[:, 1] >= LATE
    late = entries[is_late]
    return _sorted_by_key(entries[~is_late] if len(late) else entries), late


def _sorted_by_key(entries: np.ndarray) -> np.ndarray:
    """Entries sorted by key."""
    return entries[np.argsort(entries[:, 0])]


def _first_of_each_key(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of entries sorted by key, the first of each key, and for each entry the place of the first with its key."""
    keys = entries[:, 0]
    begins = np.ones(len(keys), bool)
    begins[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(begins)
    smallest = np.minimum.reduceat(entries[:, 1], starts) if len(keys) else entries[:, 1]
    return np.stack([keys[starts], smallest], axis=1), np.cumsum(begins) - 1


def _repeated_entries(entries: np.ndarray, firsts: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The entries of documents that are dropped for an earlier one."""
    ranks = entries[:, 1]
    stays = (ranks < HELD_OUT) | ((ranks & KEEPS_COPIES) > 0)
    return entries[(ranks != firsts[which, 1]) & ~stays]


def _mark_copies(copies: np.ndarray, repeats: np.ndarray, start: int) -> None:
    """Mark documents as copies; one that is an exact and a near copy counts as an exact one."""
    numbers = (repeats[:, 1] & NUMBER).astype(np.int64) - start
    is_exact = (repeats[:, 0] & _IS_EXACT) > 0
    near = numbers[~is_exact]
    copies[near[copies[near] == USED]] = NEAR
    copies[numbers[is_exact]] = EXACT
