import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.data.batch import BRANCH
from tpullm.evaluation.likelihoods import columns, grouped, laid_out, row_length

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=12).map(tuple), min_size=1, unique=True)


def seen(rows, row, column):
    """The tokens that the prediction at a column of a row sees, in the order of their positions."""
    segments, positions = rows.segments[row], rows.positions[row]
    own = segments[column]
    sees = ((segments == own) | (segments == own % BRANCH)) & (positions <= positions[column]) & (segments > 0)
    order = np.argsort(positions[sees], kind="stable")
    assert positions[sees][order].tolist() == list(range(sees.sum()))  # each position once
    return rows.inputs[row][sees][order].tolist()


@given(SEQUENCES, st.data())
def test_each_token_is_predicted_from_all_before_it_and_from_nothing_else(sequences, data):
    groups = grouped(sequences)
    assert sorted(member for group in groups for member in group.members) == list(range(len(sequences)))
    (rows,) = laid_out(sequences, groups)
    for number, ids in enumerate(sequences):
        count = data.draw(st.integers(1, len(ids) - 1))
        place = rows.places[number]
        for token, column in enumerate(columns(place, len(ids), count), len(ids) - count):
            assert rows.targets[place[0], column] == ids[token]
            assert seen(rows, place[0], column) == list(ids[:token])


@given(SEQUENCES)
def test_the_size_of_a_group_is_what_it_takes_in_a_row(sequences):
    groups = grouped(sequences)
    (rows,) = laid_out(sequences, groups)
    assert (rows.segments > 0).sum() == sum(group.size for group in groups) <= sum(len(ids) - 1 for ids in sequences)


def test_choices_share_their_question():
    question = tuple(range(10, 110))
    sequences = [(*question, choice, 7) for choice in range(4)]
    (group,) = grouped(sequences)
    assert group.shared == 100 and group.size == 99 + 4 * 2
    (rows,) = laid_out(sequences, [group])
    assert rows.branched and rows.inputs.shape == (1, 512)


def test_questions_with_the_same_examples_share_them_all():
    """A hundred predictions of examples stand once, and each question twice, with each choice."""
    sequences = [(*range(10, 110), question, question, choice) for question in range(4) for choice in range(2)]
    (group,) = grouped(sequences)
    assert group.shared == 100 and group.size == 99 + 8 * 3


def test_texts_that_happen_to_begin_alike_stand_alone():
    sequences = [(5, 6, 7, *range(100 * text, 100 * text + 60)) for text in (1, 2, 3)]
    assert [group.members for group in grouped(sequences)] == [(0,), (1,), (2,)]
    (rows,) = laid_out(sequences, grouped(sequences))
    assert not rows.branched
    sequences = [(*range(8), *range(100 * text, 100 * text + 50)) for text in (1, 2)]  # 7 of 57 predictions
    assert [group.members for group in grouped(sequences)] == [(0,), (1,)]
    sequences = [(*range(9), *range(100 * text, 100 * text + 50)) for text in (1, 2)]  # 8 of 58
    assert [group.members for group in grouped(sequences)] == [(0, 1)]


def test_a_row_has_one_of_few_lengths():
    assert [row_length(n) for n in (1, 512, 513, 2000)] == [512, 512, 1024, 2048]


@pytest.mark.parametrize("most", [300, 3000])
def test_a_group_is_not_larger_than_the_largest_one_or_than_its_longest_sequence_needs(most):
    sequences = [(*range(most), choice, *range(200)) for choice in range(40)]
    groups = grouped(sequences)
    limit = max(2048, 1 << (most + 200 - 1).bit_length())
    assert all(group.size <= limit for group in groups) and max(group.size for group in groups) > limit - 201
