import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.evaluation import likelihoods as module
from tpullm.evaluation.likelihoods import Continuation, cut, likelihoods
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
