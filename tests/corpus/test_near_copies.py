"""Sketches are compared where they lie on the disk: a process holds few of them at once."""

import tracemalloc

import numpy as np

from tests.corpus import made_facts
from tpullm.corpus import document_files, near_copies, reduce
from tpullm.corpus.document_files import NEAR, USED

PAIRS, HASHES = 300, 1024
NUMBERS = np.arange(2 * PAIRS, dtype=np.uint64)


def test_many_pairs_are_compared_in_little_memory(tmp_path, monkeypatch):
    """All sketches are 4.9 MB; 10 MiB were held. Every third pair has a half in common, others all."""
    documents = (made_facts.Document(0, tuple(range(16))),) * (2 * PAIRS)
    placed = made_facts.written(tmp_path, [made_facts.Made(documents, room=999)])
    (group,), _, _ = reduce.divide(placed, tmp_path, tmp_path, 0)
    hashes = NUMBERS[:, None] // 2 * HASHES + np.arange(HASHES, dtype=np.uint64)
    hashes[1::6, HASHES // 2 :] += np.uint64(1 << 20)
    rows = (hashes | NUMBERS[:, None] << np.uint64(32)).ravel()
    document_files.write(group.file("sketches"), np.array([0, len(rows)]), [rows])
    pairs = NUMBERS.reshape(-1, 2)[:, ::-1]
    document_files.write(group.file("pairs"), np.array([0, len(pairs)]), [pairs])
    monkeypatch.setattr(near_copies, "PAIRS_AT_ONCE", 70)
    del hashes, rows
    tracemalloc.start()
    try:
        marks = near_copies.marks_after_copies(group)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = np.full(2 * PAIRS, USED)
    expected[1::2] = NEAR
    expected[1::6] = USED
    assert marks.tolist() == expected.tolist()
    assert most < 1 << 20


def test_a_line_is_left_out_if_it_stands_in_more_documents_than_it_may(tmp_path):
    placed = made_facts.written(tmp_path, [made_facts.Made((made_facts.Document(0, tuple(range(16))),), room=9)])
    (group,), _, _ = reduce.divide(placed, tmp_path, tmp_path, 0)
    assert group.line_ranges == 1
    counted = np.array([[7, 2], [8, 3], [9, 4]], np.uint64)  # lines, and in how many documents each stands
    document_files.write(reduce.group_or_range_file(tmp_path, "repeated", 0), np.array([0, 3]), [counted])
    assert near_copies.repeated_keys(group, 3).tolist() == [9]
    assert near_copies.repeated_keys(group, 2).tolist() == [8, 9]
