"""Continuations are scored in shared rows as each alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data.batch import BRANCH
from tpullm.evaluation import likelihoods as module
from tpullm.evaluation.likelihoods import Continuation, group_by_beginning, lay_groups, likelihoods
from tpullm.evaluation.scoring import next_log_probabilities
from tpullm.model.rows import fetch_whole

# Products of another shape sum in another order: log-probabilities of about 10 agree to 1e-4 in float32.
TOLERANCE = 1e-4


def scored(session, requests):
    found = {}
    likelihoods(session, requests, found.update)
    return [found[n] for n in range(len(requests))]


def assert_as_alone(session, requests, found=None):
    """The reference is the distribution after every beginning, each computed alone."""
    for number, request in enumerate(requests):
        ids = [*request.context, *request.continuation][-(session.context_length + 1) :]
        tokens = ids[-len(request.continuation) :]
        log_p = next_log_probabilities(session, [ids[:end] for end in range(len(ids) - len(tokens), len(ids))])
        chosen = log_p[np.arange(len(tokens)), tokens]
        found = scored(session, requests) if found is None else found
        assert found[number].log_probability == pytest.approx(chosen.sum(dtype=np.float64), abs=TOLERANCE)
        assert found[number].is_likeliest == (chosen == log_p.max(axis=1)).all()


def test_a_long_context_is_cut_at_its_left(session):
    long = Continuation(tuple(range(8, 48)), (50, 51))
    assert session.context_length == 32
    assert_as_alone(session, [long, long._replace(continuation=(50, 52))])


TOKENS = st.lists(st.integers(8, 12), min_size=1, max_size=5).map(tuple)
BEGINNING = tuple(range(20, 37))  # then all rows of the reference have 32 tokens


@settings(max_examples=8)
@given(requests=st.lists(st.tuples(TOKENS, TOKENS), min_size=2, max_size=4, unique=True))
def test_packed_with_shared_beginnings_is_as_each_alone(session, requests):
    assert_as_alone(session, [Continuation(BEGINNING + context, continuation) for context, continuation in requests])


def test_the_likeliest_continuation_is_told_from_all_others(session):
    said = ()
    for _ in range(3):
        said = (*said, int(next_log_probabilities(session, [[*BEGINNING, *said]])[0].argmax()))
    other = (*said[:2], said[2] + 1)
    found = scored(session, [Continuation(BEGINNING, ids) for ids in (said, other, said[:1])])
    assert [of.is_likeliest for of in found] == [True, False, True]
    assert found[0].log_probability > found[1].log_probability


def test_a_batch_is_dispatched_before_the_last_one_is_looked_at(session, monkeypatch):
    """Rows of 512 predictions, of which a batch has two; the requests of both batches have their likelihoods."""
    monkeypatch.setattr(module, "TOKENS_ON_CPU", 1024)
    events, found, run = [], {}, module.dispatched
    monkeypatch.setattr(module, "dispatched", lambda *given, **more: events.append("dispatched") or run(*given, **more))
    monkeypatch.setattr(module, "fetch_whole", lambda *given: events.append("looked at") or fetch_whole(*given))
    contexts = [(8 + n // 4, *BEGINNING, *range(100 + n, 112 + n)) for n in range(96)]
    requests = [Continuation(context, (8,)) for context in contexts] * 2
    likelihoods(session, requests, lambda some: events.append("done") or found.update(some))
    looked = ["looked at", "looked at", "done"]
    assert events == ["dispatched", "dispatched", *looked, *looked]
    assert all(found[n] == found[n + 96] for n in range(96)), "the same requests"
    assert_as_alone(session, requests[:96:19], [found[n] for n in range(0, 96, 19)])


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
    groups = group_by_beginning(sequences)
    assert sorted(member for group in groups for member in group.members) == list(range(len(sequences)))
    (rows,) = lay_groups(sequences, groups)
    assert (rows.segments > 0).sum() == sum(group.size for group in groups) <= sum(len(ids) - 1 for ids in sequences)
    for number, ids in enumerate(sequences):
        count = data.draw(st.integers(1, len(ids) - 1))
        row, columns = rows.places[number]
        assert len(columns) == len(ids) - 1
        for token, column in enumerate(columns[-count:], len(ids) - count):
            assert rows.targets[row, column] == ids[token]
            assert seen(rows, row, column) == list(ids[:token])


QUESTION = tuple(range(10, 110))
CHOICES = [(*QUESTION, choice, 7) for choice in range(4)]
ASKED_TWICE = [(*QUESTION, question, question, choice) for question in range(4) for choice in range(2)]
BY_CHANCE = [(5, 6, 7, *range(100 * text, 100 * text + 60)) for text in (1, 2, 3)]
TOO_SHORT = [(*range(8), *range(100 * text, 100 * text + 50)) for text in (1, 2)]  # 7 of 57 predictions
LONG_ENOUGH = [(*range(9), *range(100 * text, 100 * text + 50)) for text in (1, 2)]  # 8 of 58


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (CHOICES, [((0, 1, 2, 3), 100, 99 + 4 * 2)]),
        (ASKED_TWICE, [(tuple(range(8)), 100, 99 + 8 * 3)]),  # the examples stand once, each question with each choice
        (BY_CHANCE, [((number,), 63, 62) for number in range(3)]),
        (TOO_SHORT, [((number,), 58, 57) for number in range(2)]),
        (LONG_ENOUGH, [((0, 1), 9, 8 + 2 * 50)]),
    ],
)
def test_sequences_that_begin_alike_share_the_beginning_if_it_is_worth_it(sequences, expected):
    groups = group_by_beginning(sequences)
    assert [(group.members, group.shared, group.size) for group in groups] == expected
    (rows,) = lay_groups(sequences, groups)
    assert rows.inputs.shape == (1, 512) and rows.branched == (len(groups) < len(sequences))


@pytest.mark.parametrize(
    ("lengths", "shapes"),
    [
        ([600] * 5, [(5, 1024)]),  # 5 x 384 tokens are less than a program is worth
        ([600] * 6, [(6, 640)]),
        ([600] * 4 + [700] * 4, [(8, 768)]),  # those that are too few go on to the next length
        ([600] * 6 + [1000, 300, 200], [(1, 1024), (6, 640), (1, 512)]),
        ([600] * 2 + [1200] * 9, [(9, 1280), (2, 1024)]),
    ],
)
def test_long_rows_have_lengths_between_powers_of_two_where_much_padding_is_left_out(lengths, shapes):
    sequences = [(number, *range(100, 100 + length)) for number, length in enumerate(lengths)]
    rows = lay_groups(sequences, group_by_beginning(sequences), worth=2048)
    assert [of.inputs.shape for of in rows] == shapes
    assert sorted(number for of in rows for number in of.places) == list(range(len(lengths)))


@pytest.mark.parametrize("most", [300, 3000])
def test_a_group_is_not_larger_than_the_largest_one_or_than_its_longest_sequence_needs(most):
    sequences = [(*range(most), choice, *range(200)) for choice in range(40)]
    groups = group_by_beginning(sequences)
    limit = max(2048, 1 << (most + 200 - 1).bit_length())
    assert all(group.size <= limit for group in groups) and max(group.size for group in groups) > limit - 201
