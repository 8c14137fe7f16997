"""Finds documents that are mostly lines of many documents: menus, notices, footers that no rule for one page can see.

Two rounds of tasks like those of `reduce.py`, after the copies are found:

    count     a group of parts   → its lines, and in how many of its documents each stands, sorted by hash
    add_up    a range of hashes  → the lines that stand in too many documents of the corpus, by group

Copies are not counted: the lines of a text that is there twenty times would be repeated lines, and the one copy that is
kept would be dropped for them. So the result depends on the documents that are left, and not on groups, ranges and
processes.

The last round of collect comes after both, `mark`: a group of parts → the marks of its documents, and what they count.
"""

import json
from typing import Any

import numpy as np

from tpullm.corpus import document_files, reduce, tasks
from tpullm.corpus.document_files import COMPARED, EXACT, EXAMPLES, LINES, MARKS
from tpullm.corpus.reduce import Group, Placed, Range
from tpullm.system import storage

# Share of the characters of a document. Dolma 1.7 drops pages of Common Crawl with more than this in paragraphs that
# it has seen before (configs/dolma-v1_7/sources/cc_ngram_dedupe_mix.yaml). Of novels, plays and documentation in pages
# of 5,000 characters, nothing is dropped for lines that stand in more than 3 of them.
MOST = 0.3


def count(group: Group) -> None:
    """Write in how many documents of a group each of its lines stands, (key, documents): uint64 [lines, 2]."""
    found = [np.zeros(0, np.uint64)]
    for one, marks in group.split(reduce.marks_after_copies(group)):
        if one.lines:
            lines, rows = _lines_of_part(one)
            found.append(lines["key"][marks[rows] < EXACT])
    keys, documents = np.unique(np.concatenate(found), return_counts=True)
    counts = np.stack([keys, documents.astype(np.uint64)], axis=1)
    document_files.write(group.file("lines"), document_files.range_bounds(keys, group.line_ranges), counts)


def add_up(own: Range) -> None:
    """Write which lines of each group are repeated ones: their hashes, sorted."""
    counted = own.slices("lines", 2)
    counts = np.concatenate(counted)
    keys, which = np.unique(counts[:, 0], return_inverse=True)
    repeated = keys[np.bincount(which, counts[:, 1]) > own.most]
    found = [one[_are_known_keys(one[:, 0], repeated), 0] for one in counted]
    document_files.write(own.file("repeated"), np.cumsum([0, *map(len, found)]), np.concatenate(found))


def _lines_of_part(one: Placed) -> tuple[np.ndarray, np.ndarray]:
    """The lines of the documents of a part, and the row of the document of each."""
    lines, counts = tasks.arrays_of_part(one.part, "lines", "line_counts")
    return lines, np.repeat(np.arange(len(counts)), counts)


def _are_known_keys(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which keys are among the sorted, known ones."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def mark(group: Group) -> None:
    """Write the marks of a group, and what they count."""
    marks = reduce.marks_after_copies(group)
    if group.line_ranges:
        places = (reduce.group_or_range_file(group.folder, "repeated", number) for number in range(group.line_ranges))
        repeated = np.concatenate([document_files.read_range(path, group.number)[:, 0] for path in places])
        for one, own in group.split(marks):  # a view
            if one.lines:
                lines, rows = _lines_of_part(one)
                (characters,) = tasks.arrays_of_part(one.part, "characters")
                found = np.bincount(rows, lines["characters"] * _are_known_keys(lines["key"], repeated), len(own))
                own[(found > MOST * characters) & (own < EXACT)] = LINES
    document_files.write_marks(group.marks, marks)
    storage.write_json(group.file("counts"), _counts_of_marks(group, marks))


def _counts_of_marks(group: Group, marks: np.ndarray) -> dict[str, Any]:
    """What the marks count: rows of (source, language, licence, mark, documents, characters), and examples.

    The examples are the first of each source and mark: see `document_files.examples`.
    """
    rows, examples = [], []
    for one, own in group.split(marks):
        place, kinds, characters = tasks.arrays_of_part(one.part, "kind", "kinds", "characters")
        cells = place.astype(np.int64) * len(MARKS) + own
        documents, lengths = np.bincount(cells), np.bincount(cells, characters)
        for cell in np.flatnonzero(documents).tolist():
            kind = (one.source.name, *json.loads(str(kinds))[cell // len(MARKS)])
            rows.append([*kind, cell % len(MARKS), int(documents[cell]), int(lengths[cell])])
        for reason in COMPARED:
            kind = {"source": one.source.name, "mark": reason}
            missing = EXAMPLES - sum(kind.items() <= example.items() for example in examples)
            found = document_files.examples(one.part, np.flatnonzero(own == reason)[:missing])
            examples += [kind | example for example in found]
    return {"rows": rows, "examples": examples}
