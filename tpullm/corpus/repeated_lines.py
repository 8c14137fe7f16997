"""Finds lines that stand in many documents: menus, notices, footers that no rule for one page can see.

Two rounds of tasks like those of `reduce.py`, after documents that may be copies are found:

    count     a group of parts   → its lines, and in how many of its documents each stands, sorted by hash
    add_up    a range of hashes  → the lines that stand in many documents of the corpus, and in how many, by group

What is likely to be a copy of an earlier document is not counted: the lines of a text that is there twenty times would
be repeated lines, and the one copy that is kept would be dropped for them. One shared band does not make it likely: the
pages of one template would have no repeated lines, and be copies for them. So the result depends on the documents that
are left, and not on groups, ranges and processes.

Near copies are compared without these lines, and documents are dropped that are mostly such lines. So the last round of
collect comes after both, `mark`: a group of parts → the marks of its documents, and what they count.
"""

import json
from typing import Any

import numpy as np

from tpullm.corpus import dedup, document_files, near_copies, reduce, tasks
from tpullm.corpus.document_files import COMPARED, EXACT, EXAMPLES, LINES, MARKS, NEAR
from tpullm.corpus.reduce import Group, Placed, Range
from tpullm.system import storage

# Share of the characters of a document. Dolma 1.7 drops pages of Common Crawl with more than this in paragraphs that
# it has seen before (configs/dolma-v1_7/sources/cc_ngram_dedupe_mix.yaml). Of novels, plays and documentation in pages
# of 5,000 characters, nothing is dropped for lines that stand in more than 3 of them.
MOST = 0.3


def count(group: Group) -> None:
    """Write in how many documents of a group each of its lines stands, (key, documents): uint64 [lines, 2]."""
    marks, _ = reduce.marks_and_pairs(group)
    marks[group.places(document_files.read_range(group.file("likely"), 0)[:, 0])] = NEAR
    found, is_counted = [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
    for one, own in group.split(marks):
        if one.lines:
            lines, rows = _lines_of_part(one)
            found.append(lines["key"])  # copies are compared without repeated lines too
            is_counted.append(own[rows] < EXACT)
    keys, which = np.unique(np.concatenate(found), return_inverse=True)
    documents = np.bincount(which, np.concatenate(is_counted), len(keys))
    counts = np.stack([keys, documents.astype(np.uint64)], axis=1)
    document_files.write(group.file("lines"), document_files.range_bounds(keys, group.line_ranges), [counts])


def add_up(own: Range) -> None:
    """Write the lines of each group that stand in many documents, sorted by hash: (key, documents)."""
    counted = own.slices("lines", 2)
    counts = np.concatenate(counted)
    keys, which = np.unique(counts[:, 0], return_inverse=True)
    documents = np.bincount(which, counts[:, 1]).astype(np.uint64)
    many = documents > min(own.most or near_copies.MOST_DOCUMENTS, near_copies.MOST_DOCUMENTS)
    repeated = np.stack([keys, documents], axis=1)[many]
    found = [repeated[dedup.are_in(repeated[:, 0], one[:, 0])] for one in counted]
    document_files.write(own.file("repeated"), np.cumsum([0, *map(len, found)]), found)


def _lines_of_part(one: Placed) -> tuple[np.ndarray, np.ndarray]:
    """The lines of the documents of a part, and the row of the document of each."""
    lines, counts = tasks.arrays_of_part(one.part, "lines", "line_counts")
    return lines, np.repeat(np.arange(len(counts)), counts)


def mark(group: Group) -> None:
    """Write the marks of a group, and what they count."""
    marks = near_copies.marks_after_copies(group)
    keys = near_copies.repeated_keys(group, group.most) if group.most else ()
    for one, own in group.split(marks):  # a view
        if len(keys) and one.lines and one.source.filter and one.source.deduplicate:
            lines, rows = _lines_of_part(one)
            names = ("characters", "held_out", "kind", "kinds")
            characters, named, kind, kinds = tasks.arrays_of_part(one.part, *names)
            is_code = np.array([language == "code" for language, _ in json.loads(str(kinds))], bool)
            found = np.bincount(rows, lines["characters"] * dedup.are_in(lines["key"], keys), len(own))
            own[(found > MOST * characters) & (own < EXACT) & ~named & ~is_code[kind]] = LINES
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
