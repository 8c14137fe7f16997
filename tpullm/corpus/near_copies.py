"""Compares documents that may be near copies: those that share a band with an earlier one (`reduce.py`).

Most pairs of a band are no copies: pages of one site share their menu, files of one program their licence. So the two
texts are compared without the lines that stand in many documents, by sketches, in two rounds of tasks:

    sketch    a group of parts   → the sketches of its documents, by the group that needs them
    mark      a group of parts   → see `repeated_lines.py`; `marks_after_copies` compares the sketches

Before, the lines are counted (`repeated_lines.py`), in the documents that are not likely to be copies: the lines
of a text that a thousand sites copied are no menu, and the menus of those sites stand in their other pages too. A
sketch is made of a text when its document is in a pair, since few are, and no part has to keep it.
"""

import numpy as np

from tpullm.corpus import dedup, document_files, reduce
from tpullm.corpus.document_files import NEAR
from tpullm.corpus.reduce import Group

LEAST_SIMILARITY = 0.7
MOST_DOCUMENTS = 10  # that a line may stand in, to be compared
PAIRS_AT_ONCE = 1_000  # whose sketches are at most 16 MB of files
_HASH_BITS = np.uint64(32)


def sketch(group: Group) -> None:
    """Write the sketches of the documents of a group that each group needs: rows of a number and a hash, 32 bits each.

    Numbers begin with the first document of this group.
    """
    groups = range(len(group.starts) - 1)
    files = [reduce.group_or_range_file(group.folder, "needed", number) for number in groups]
    needed = [group.places(document_files.read_range(file, group.number)[:, 0]) for file in files]
    keys = repeated_keys(group, MOST_DOCUMENTS)
    wanted = np.unique(np.concatenate(needed))
    sketches: dict[int, np.ndarray] = {}
    for one in group.placed:
        first = one.start - group.start
        rows = wanted[(wanted >= first) & (wanted < first + one.documents)] - first
        for row, text in zip(rows.tolist(), document_files.texts(one.part, rows), strict=True):
            sketches[first + row] = dedup.sketch(dedup.without_lines(text, keys))
    lengths = [sum(len(sketches[number]) for number in numbers.tolist()) for numbers in needed]
    rows = (
        sketches[number].astype(np.uint64) | np.uint64(number) << _HASH_BITS
        for numbers in needed
        for number in numbers.tolist()
    )
    document_files.write(group.file("sketches"), np.cumsum([0, *lengths]), rows)


def repeated_keys(group: Group, most: int) -> np.ndarray:
    """The hashes of lines of a group that stand in more than `most` documents of the corpus, sorted: uint64 [lines]."""
    paths = (reduce.group_or_range_file(group.folder, "repeated", number) for number in range(group.line_ranges))
    lines = [document_files.read_range(path, group.number, 2) for path in paths]
    return np.concatenate([np.zeros(0, np.uint64), *(own[own[:, 1] > most, 0] for own in lines)])


def marks_after_copies(group: Group) -> np.ndarray:
    """The marks of the documents of a group after exact and near copies are found: uint8 [documents]."""
    marks, pairs = reduce.marks_and_pairs(group)
    of_earlier = np.searchsorted(group.bounds, pairs[:, 1], side="right") - 1
    for number in np.unique(of_earlier).tolist():
        pairs_there = pairs[of_earlier == number]
        for start in range(0, len(pairs_there), PAIRS_AT_ONCE):
            # Mapped anew each time: what is not mapped any more takes no memory.
            own, others = (_sketches(group, one) for one in (group.number, number))
            for later, earlier in pairs_there[start : start + PAIRS_AT_ONCE].tolist():
                later, earlier = later - group.start, earlier - group.starts[number]
                if dedup.similarity(_one(own, later), _one(others, earlier)) >= LEAST_SIMILARITY:
                    marks[later] = NEAR
    return marks


def _sketches(group: Group, number: int) -> np.ndarray:
    """The sketches that a group needs of the documents of a group: rows of `sketch`, sorted, uint64 [rows]."""
    return document_files.mapped_range(reduce.group_or_range_file(group.folder, "sketches", number), group.number)


def _one(rows: np.ndarray, number: int) -> np.ndarray:
    """The sketch of the document with a number: uint32 [at most SKETCH]."""
    first, stop = np.searchsorted(rows, np.array([number, number + 1], np.uint64) << _HASH_BITS)
    return rows[first:stop].astype(np.uint32)
