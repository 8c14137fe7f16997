"""The last round of collect over the whole corpus: a group of parts → the marks of its documents, and what they count.

It comes after copies (`reduce.py`) and repeated lines (`repeated_lines.py`) are found.
"""

import json
from typing import Any

import numpy as np

from tpullm import storage
from tpullm.corpus import document_files, reduce, repeated_lines, tasks
from tpullm.corpus.datacard_counts import EXAMPLES
from tpullm.corpus.document_files import COMPARED, LINES, MARKS
from tpullm.corpus.reduce import Group


def mark(group: Group) -> None:
    """Write the marks of a group, and what they count."""
    marks = reduce.compared(group)
    if group.line_ranges:
        marks[repeated_lines.dropped(group, marks)] = LINES
    document_files.write_marks(group.marks, marks)
    storage.write_json(group.counts, _counts(group, marks))


def _counts(group: Group, marks: np.ndarray) -> dict[str, Any]:
    """What the marks count: rows of (source, language, licence, mark, documents, characters), and examples.

    The examples are the first of each source and mark: see `document_files.examples`.
    """
    rows, examples = [], []
    for one, own in group.split(marks):
        place, kinds, characters = tasks.arrays(one.part, "kind", "kinds", "characters")
        cells = place.astype(np.int64) * len(MARKS) + own
        documents, lengths = np.bincount(cells), np.bincount(cells, characters)
        for cell in np.flatnonzero(documents).tolist():
            language, licence = json.loads(str(kinds))[cell // len(MARKS)]
            rows.append(
                [one.source.name, language, licence, cell % len(MARKS), int(documents[cell]), int(lengths[cell])]
            )
        for reason in COMPARED:
            kind = {"source": one.source.name, "mark": reason}
            missing = EXAMPLES - sum(kind.items() <= example.items() for example in examples)
            found = document_files.examples(one.part, np.flatnonzero(own == reason)[:missing])
            examples += [kind | example for example in found]
    return {"rows": rows, "examples": examples}
