"""Lines in many documents are found exactly, however the corpus is cut into parts and the hashes into ranges."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus.filters import repeated_lines

LINES = [f"{word} is a line that may stand in many of the documents" for word in "One Two Three Four Five".split()]
LINES += ["短い行", "これは多くの文書にある長い一行です。", "", "short"]


def found(folder, documents, parts, most):
    """By map and reduce, from as many parts."""
    paths = []
    for number in range(parts):
        counts = repeated_lines.LineCounts()
        for document in documents[number::parts]:
            counts.add(document)
        paths.append(folder / f"{number}.npy")
        counts.save(paths[-1])
    pieces = [repeated_lines.repeated(paths, bounds, most) for bounds in repeated_lines.ranges(paths)]
    return np.concatenate(pieces)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(LINES), max_size=8).map("\n".join), max_size=12),
    st.integers(1, 5),
    st.integers(0, 4),
    st.sampled_from([1, 3, 1000]),
)
def test_lines_are_found_that_stand_in_more_documents(tmp_path_factory, documents, parts, most, bound):
    counts = Counter(line for document in documents for line in set(document.split("\n")))
    repeats = {line for line, count in counts.items() if count > most and len(line.encode()) >= 24}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated_lines, "MOST_IN_RANGE", bound)
        patch.setattr(repeated_lines, "MOST_HELD", bound)
        keys = found(tmp_path_factory.mktemp("parts"), documents, parts, most)
    assert np.all(keys[1:] > keys[:-1]) and len(keys) == len(repeats)
    for document in documents:
        expected = "\n".join(line for line in document.split("\n") if line not in repeats)
        assert repeated_lines.without(document, keys) == expected


def test_ranges_cover_all_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(repeated_lines, "MOST_IN_RANGE", 7)
    counts = repeated_lines.LineCounts()
    counts.add("\n".join(f"a line of its own in the text, {'x' * number}" for number in range(100)))
    counts.save(tmp_path / "0.npy")
    bounds = repeated_lines.ranges([tmp_path / "0.npy"])
    assert len(bounds) == 15 and bounds[0][0] == 0 and bounds[-1][1] == 1 << 64
    assert [first for first, _ in bounds[1:]] == [end for _, end in bounds[:-1]]
    pieces = [repeated_lines.repeated([tmp_path / "0.npy"], bound, 0) for bound in bounds]
    assert sum(map(len, pieces)) == 100 and max(map(len, pieces)) < 20


def test_case_spaces_and_numbers_do_not_count():
    keys = {repeated_lines._key(line) for line in ("Copyright 2019  Example Inc.", "copyright 2024 example inc. ")}
    assert len(keys) == 1 and repeated_lines._key("Copyright 2019 Other Inc.") not in keys


def test_a_text_without_such_lines_stays_itself():
    text = "A line that is not in any list, and is long.\nshort"
    assert repeated_lines.without(text, np.array([1, 2], np.uint64)) is text
    assert repeated_lines.without(text, np.zeros(0, np.uint64)) is text
