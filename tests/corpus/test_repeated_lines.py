"""Documents that are mostly lines of many documents: what brute force finds, for any groups of parts and ranges."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.made_facts import Document, Made, marked, written
from tpullm.corpus import dedup, reduce
from tpullm.corpus.document_files import APART, EXACT, LINES, USED

LINE_LISTS = st.dictionaries(st.integers(0, 12), st.integers(1, 30), max_size=6).map(lambda own: tuple(own.items()))
DOCUMENTS = st.builds(
    Document,
    st.integers(0, 40),
    st.just((0,) * dedup.BANDS),
    apart=st.sampled_from([False, False, True]),
    named=st.sampled_from([False, False, False, True]),
    lines=LINE_LISTS,
    characters=st.integers(1, 200),
)
PARTS = st.lists(
    st.builds(
        Made,
        st.lists(DOCUMENTS, max_size=8).map(tuple),
        room=st.sampled_from([99, 99, 3]),
        has_lines=st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=5,
)


def distinct(made: list[Made]) -> list[Made]:
    """The same parts, in which no document is a near copy."""
    numbers = iter(range(1000))

    def alone(document: Document) -> Document:
        return replace(document, near=(next(numbers),) * dedup.BANDS)

    return [replace(one, documents=tuple(map(alone, one.documents))) for one in made]


def by_brute_force(made: list[Made], marks: list[list[int]], most: int) -> list[list[int]]:
    """The marks by their definition, from those after copies are found."""
    left = [
        [
            document.lines if one.has_lines and mark in (USED, APART) else ()
            for document, mark in zip(*both, strict=True)
        ]
        for one, both in ((one, (one.documents, own)) for one, own in zip(made, marks, strict=True))
    ]
    counts = Counter(number for own in left for lines in own for number, _ in lines)
    found = []
    for one, own, part in zip(made, marks, left, strict=True):
        repeated = [sum(length for number, length in lines if counts[number] > most) for lines in part]
        mostly = [
            10 * length > 3 * document.characters for length, document in zip(repeated, one.documents, strict=True)
        ]
        found.append([LINES if is_so else mark for is_so, mark in zip(mostly, own, strict=True)])
    return found


@settings(max_examples=12, deadline=None)
@given(
    made=PARTS.map(distinct),
    most=st.integers(1, 5),
    documents=st.sampled_from([1, 5, 1000]),
    lines=st.sampled_from([1, 10, 10**6]),
    in_range=st.sampled_from([9, 10**6]),
)
def test_documents_of_repeated_lines_are_marked_for_any_groups_and_ranges(made, most, documents, lines, in_range):
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(reduce, "GROUP_DOCUMENTS", documents),
        mock.patch.object(reduce, "GROUP_LINES", lines),
        mock.patch.object(reduce, "RANGE_LINES", in_range),
        mock.patch("tpullm.system.storage.atomic._sync"),  # most of the time, and nothing is lost here
    ):
        placed = written(Path(folder), made)
        before, _ = marked(Path(folder), [replace(one, lines=0) for one in placed])
        found, rows = marked(Path(folder), placed, most)
    expected = by_brute_force(made, before, most)
    assert found == expected
    counted = Counter()
    for row in rows:
        counted[row[3]] += row[4]
    assert counted == Counter(mark for own in expected for mark in own)


def test_the_one_copy_that_is_kept_is_not_dropped_for_its_copies(tmp_path):
    text = Document(1, (1,) * dedup.BANDS, lines=((1, 7),))
    other = Document(2, (2,) * dedup.BANDS, lines=((1, 7),))
    assert marked(tmp_path, written(tmp_path, [Made((text,) * 9, has_lines=True)]))[0] == [[USED, *[EXACT] * 8]]
    alike = [Made((text,) * 9, has_lines=True), Made((other,), has_lines=True)]
    assert marked(tmp_path, written(tmp_path, alike))[0] == [[LINES, *[EXACT] * 8], [LINES]]
