"""Copies and lines over the whole corpus: what brute force finds, for any groups of parts and ranges of keys."""

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.made_facts import Document, Made, line, marked, written
from tpullm.corpus import dedup, near_copies, reduce
from tpullm.corpus.document_files import APART, BEYOND, EXACT, LINES, NEAR, USED, Part
from tpullm.corpus.reduce import Placed
from tpullm.recipe.schema import Source
from tpullm.system import storage


def by_brute_force(made: list[Made], most: int) -> list[list[int]]:
    """The marks by their definition: each document is compared with the first one of each of its keys."""
    order, marks = [], []
    for part, one in enumerate(made):
        free = 0
        marks.append([])
        for row, document in enumerate(one.documents):
            free += not document.named
            beyond = not document.named and free > one.room
            apart = document.named or (document.apart and one.divides and not one.few)
            marks[-1].append(BEYOND if beyond else APART if apart else USED)
            rank = 0 if document.named else 1 if apart or one.few else 2
            if not beyond:
                order.append((rank, one.keeps, len(order), part, row, document))
    order.sort(key=lambda one: one[:3])
    pairs = []
    for number, (rank, keeps, _, part, row, document) in enumerate(order):
        if rank == 0 or (keeps and rank == 1):
            continue
        earlier = [other for other in order[:number] if not keeps or other[0] < 2]
        if any(other[5].exact == document.exact for other in earlier):
            marks[part][row] = EXACT
        elif not keeps:
            signed = [other for other in earlier if made[other[3]].signs(other[5]) and not (other[1] and other[0] == 2)]
            for band in range(dedup.BANDS):
                same = [other for other in signed if other[5].near[band] == document.near[band]]
                pairs += [(part, row, same[0][3], same[0][4])] if same else []
    likely = {pair[:2] for pair, bands in Counter(pairs).items() if bands > 1}
    counts = Counter()
    for part, one in enumerate(made):
        for row, document in enumerate(one.documents):
            if one.signs(document) and (part, row) not in likely and marks[part][row] < EXACT:
                counts.update(set(document.lines))
    texts = [[_text_to_compare(document, counts) for document in one.documents] for one in made]
    for part, row, other, place in pairs:
        if 10 * len(texts[part][row] & texts[other][place]) >= 7 * len(texts[part][row] | texts[other][place]):
            marks[part][row] = NEAR
    for part, one in enumerate(made):
        for row, document in enumerate(one.documents):
            length = sum(len(line(number)) for number in document.lines if counts[number] > most)
            is_judged = one.filters and not one.keeps and not document.named and one.language != "code"
            if is_judged and marks[part][row] < EXACT and 10 * length > 3 * len(document.text):
                marks[part][row] = LINES
    return marks


def _text_to_compare(document: Document, counts: Counter) -> set[tuple[str, ...]]:
    """The runs of five words of the lines that stand in few documents, or of all lines if none are."""
    left = "\n".join(line(number) for number in document.lines if counts[number] <= MOST_DOCUMENTS)
    words = (left or document.text).split()
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


MOST_DOCUMENTS = 2
LINE_LISTS = st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True).map(tuple)
LINE_LISTS |= st.sampled_from(
    [(0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 6), (0, 1, 2, 3, 4), (7, 0, 1, 2, 3, 4, 5), (7, 8, 9)]
)
DOCUMENTS = st.builds(
    Document,
    st.integers(0, 20),
    st.tuples(*[st.integers(0, 60)] * dedup.BANDS) | st.sampled_from([(number,) * dedup.BANDS for number in range(3)]),
    lines=LINE_LISTS,
    apart=st.sampled_from([False, False, False, True]),
    named=st.sampled_from([False, False, False, False, True]),
)
PARTS = st.lists(
    st.builds(
        Made,
        st.lists(DOCUMENTS, max_size=8).map(tuple),
        keeps=st.booleans(),
        few=st.sampled_from([False, False, True]),
        room=st.sampled_from([99, 99, 3]),
        divides=st.sampled_from([True, True, False]),
        filters=st.sampled_from([True, True, False]),
        language=st.sampled_from(["en", "en", "code"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12, deadline=None)
@given(
    made=PARTS,
    most=st.integers(1, 5),
    group=st.sampled_from([1, 5, 1000]),
    lines=st.sampled_from([1, 10, 10**6]),
    in_range=st.sampled_from([(1, 1), (40, 9), (10**6, 10**6)]),
)
def test_copies_and_repeated_lines_are_marked_for_any_groups_and_ranges(made, most, group, lines, in_range):
    bounds = {"GROUP_DOCUMENTS": group, "GROUP_LINES": lines, "RANGE_ENTRIES": in_range[0], "RANGE_LINES": in_range[1]}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(reduce, **bounds),
        mock.patch.object(near_copies, "MOST_DOCUMENTS", MOST_DOCUMENTS),
        mock.patch("tpullm.system.storage.atomic._sync_to_disk"),  # most of the time, and nothing is lost here
    ):
        found, rows = marked(Path(folder), written(Path(folder), made), most)
    expected = by_brute_force(made, most)
    assert found == expected
    counted = Counter()
    for row in rows:
        counted[row[0], row[3]] += row[4]
    assert counted == Counter((f"s{number}", mark) for number, marks in enumerate(expected) for mark in marks)


def test_the_one_copy_that_is_kept_is_not_dropped_for_its_copies(tmp_path):
    text = Document(1, (1,) * dedup.BANDS, lines=(1,))
    other = Document(2, (2,) * dedup.BANDS, lines=(1,))
    assert marked(tmp_path, written(tmp_path, [Made((text,) * 9)]))[0] == [[USED, *[EXACT] * 8]]
    alike = [Made((text,) * 9), Made((other,))]
    assert marked(tmp_path, written(tmp_path, alike))[0] == [[LINES, *[EXACT] * 8], [LINES]]


@pytest.mark.parametrize(("shared", "expected"), [(1, [USED] * 4), (2, [USED, *[NEAR] * 3])])
def test_pages_of_one_template_are_no_copies(tmp_path, shared, expected):
    """One shared band: the lines of the template stand in four documents, and what is left of each is its own."""
    bands = [(0,) * shared + (1 + number,) * (dedup.BANDS - shared) for number in range(4)]
    pages = [Document(number, own, lines=(0, 1, 2, 3, 4, 5, 6 + number)) for number, own in enumerate(bands)]
    with mock.patch.object(near_copies, "MOST_DOCUMENTS", 2):
        assert marked(tmp_path, written(tmp_path, [Made(tuple(pages))]), 9)[0] == [expected]


def test_groups_are_bounded_and_ranges_are_as_many_as_keep_each_below_its_bound():
    def divided(*sizes: tuple[int, int]) -> tuple:
        source, part = Source("s", "text", licence="CC0-1.0"), Part(Path(), "", "s", "")
        placed = [Placed(part, source, 0, documents, documents, lines=lines) for documents, lines in sizes]
        return reduce.divide(placed, Path(), Path(), 9)

    half = reduce.GROUP_LINES // 2
    groups, *_ = divided((1, half), (1, half), (1, half), (1, 2 * half), (1, 1))
    assert [len(group.placed) for group in groups] == [2, 2, 1] and groups[0].lines == 2 * half
    assert reduce.divide([], Path(), Path(), 9) == ([], [], []) and len(divided((1000, 0))[1]) == 1
    for documents in (10**6, 10**8):
        entries = reduce.ENTRIES * documents / len(divided((documents, 0))[1])
        assert reduce.RANGE_ENTRIES / 2 <= entries <= reduce.RANGE_ENTRIES
    for lines in (1, 10**7, 10**9):
        ranges = divided((1, lines))[2]
        assert lines / len(ranges) <= reduce.RANGE_LINES <= max(2 * lines / len(ranges), reduce.RANGE_LINES)
        assert [(own.number, own.most) for own in ranges] == [(n, 9) for n in range(len(ranges))]


def test_what_is_counted_has_characters_and_ten_copies_of_each_source_as_examples(tmp_path):
    copies = tuple(Document(1, (1,) * dedup.BANDS) for _ in range(7))
    placed = written(tmp_path, [Made(copies)] * 4)
    placed[1] = dataclasses.replace(placed[1], source=placed[0].source)
    _, rows = marked(tmp_path, placed)
    length = len(copies[0].text)
    kind = ["s0", "en", "CC0-1.0"]
    assert rows[0] == [*kind, USED, 1, length] and rows[1] == [*kind, EXACT, 6, 6 * length]
    examples = storage.read_json(tmp_path / "work" / "counts-000000")["examples"]
    expected = [("s0", f"line {row}") for row in [*range(1, 7), *range(4)]]
    expected += [(name, f"line {row}") for name in ("s2", "s3") for row in range(7)]
    assert [(example["source"], example["record"]) for example in examples] == expected
    facts = {"hash": "", "language": "en", "licence": "", "file": "file", "record": "line 1", "url": ""}
    assert examples[0] == {"source": "s0", "mark": EXACT, **facts, "beginning": copies[0].text[:80]}
