"""Continuations are scored in shared rows as each alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data.batch import BRANCH
from tpullm.evaluation import likelihoods as module
from tpullm.evaluation.likelihoods import Continuation, columns, cut, grouped, laid_out, likelihoods, row_length
from tpullm.evaluation.scoring import next_log_probabilities
from tpullm.model.rows import fetch

# Products of another shape sum in another order: log-probabilities of about 10 agree to 1e-4 in float32.
TOLERANCE = 1e-4


def scored(session, requests):
    found = {}
    likelihoods(session, requests, found.update)
    return [found[n] for n in range(len(requests))]


def by_steps(session, request):
    """The reference: the distribution after every beginning, each computed alone."""
    ids = [*request.context, *request.continuation][-(session.context_length + 1) :]
    first = len(ids) - len(request.continuation)
    log_p = next_log_probabilities(session, [ids[:end] for end in range(first, len(ids))])
    chosen = [row[token] for row, token in zip(log_p, ids[first:], strict=True)]
    return float(np.sum(chosen, dtype=np.float64)), all(
        row.argmax() == token for row, token in zip(log_p, ids[first:], strict=True)
    )


TOKENS = st.lists(st.integers(8, 12), min_size=1, max_size=14).map(tuple)


@settings(max_examples=15)
@given(requests=st.lists(st.builds(Continuation, TOKENS, TOKENS), min_size=1, max_size=6))
def test_packed_with_shared_beginnings_is_as_each_alone(session, requests):
    for request, found in zip(requests, scored(session, requests), strict=True):
        log_p, likeliest = by_steps(session, request)
        assert found.log_probability == pytest.approx(log_p, abs=TOLERANCE)
        assert found.is_likeliest == likeliest


def test_the_likeliest_continuation_is_told_from_all_others(session):
    context, said = (1, 300, 40), ()
    for _ in range(3):
        said = (*said, int(next_log_probabilities(session, [[*context, *said]])[0].argmax()))
    other = (*said[:2], said[2] + 1)
    found = scored(session, [Continuation(context, ids) for ids in (said, other, said[:1])])
    assert [of.is_likeliest for of in found] == [True, False, True]
    assert found[0].log_probability > found[1].log_probability


def test_a_long_context_is_cut_at_its_left(session):
    long = Continuation(tuple(range(8, 48)), (50, 51))
    assert session.context_length == 32 and cut(long, 32) == (*range(17, 48), 50, 51)
    assert scored(session, [long])[0].log_probability == pytest.approx(by_steps(session, long)[0], abs=TOLERANCE)


def test_a_batch_is_dispatched_before_the_last_one_is_looked_at(session, monkeypatch):
    events, run = [], module._run
    monkeypatch.setattr(module, "_run", lambda *arguments: events.append("dispatched") or run(*arguments))
    monkeypatch.setattr(module, "fetch", lambda mesh, array: events.append("looked at") or fetch(mesh, array))
    done = lambda found: events.append("done")  # noqa: E731
    # Each fills a row of 512 predictions, of which a batch has four.
    likelihoods(session, [Continuation((n, *[7] * 15), (8, 9)) for n in range(8, 8 + 200)], done)
    looked = ["looked at", "looked at", "done"]
    assert events == ["dispatched", "dispatched", *looked, *looked]


def test_several_batches_and_lengths(session):
    requests = [Continuation((8 + n % 5, *range(20, 20 + n % 25)), (60 + n % 7,)) for n in range(700)]
    found = scored(session, requests)
    for n in range(0, 700, 97):
        assert found[n].log_probability == pytest.approx(by_steps(session, requests[n])[0], abs=TOLERANCE)
    assert found[3] == found[3 + 175]  # the same request


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
