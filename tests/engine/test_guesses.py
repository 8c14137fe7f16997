"""Guesses of tokens: they change no text, whoever guesses and however well."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from tests.engine.chain import ROWS, Form, V, alone, continued, prompt
from tpullm.engine import guesses
from tpullm.engine.cache import CHUNK
from tpullm.engine.engine import Engine
from tpullm.engine.guesses import MOST, Draft, Lookup, check_draft
from tpullm.engine.request import Request
from tpullm.engine.sampling import Next
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system.errors import UserError


class Told:
    """Guesses what is known to follow, `right` tokens of it, and then another token."""

    def __init__(self, follows: dict[tuple[int, ...], list[int]], right: int):
        self.follows, self.right = follows, right

    def of(self, texts, rows, slots):
        rest = {row: self.follows[text.request.ids][len(text.new) :] for row, text in texts.items()}
        return {row: [*ids[: self.right], 5, 6, 7][:MOST] for row, ids in rest.items()}


@pytest.fixture(scope="module")
def guessing(long):
    return Engine(long, ROWS, guesses=Lookup())


ASKED = [
    Request(prompt(9, 1), 14, GREEDY),
    Request(prompt(CHUNK + 3, 2), 9, Sampling(1.5, 0, 1.0, 0.0), seed=7),
    Request(prompt(505, 3), 12, GREEDY),  # it outgrows its group in the midst of guesses
]


@pytest.mark.parametrize("right", [0, 1, 3, MOST])
def test_guesses_that_are_right_wrong_and_both_change_nothing(guessing, right):
    expected = list(map(alone, ASKED))
    guessing.guesses = Told({one.ids: ids for one, ids in zip(ASKED, expected, strict=True)}, right)
    before = guessing.figures()
    for one, ids in zip(ASKED, expected, strict=True):
        assert continued(guessing, [one]) == [ids]
    assert continued(guessing, ASKED[:2]) == expected[:2]
    guessed, found = (guessing.figures()[name] - before[name] for name in ("guesses", "right_guesses"))
    assert guessed and (found == guessed if right == MOST else found < guessed)
    assert bool(found) == bool(right)


def test_several_tokens_are_checked_in_one_step(guessing):
    expected = alone(ASKED[0])
    guessing.guesses, turns = Told({ASKED[0].ids: expected}, MOST), 1
    guessing.submit(ASKED[0], lambda token: None)
    while guessing.step():
        turns += 1
    # The first token comes with the prompt, then six at a time, each of them in the turn after the one that asks.
    assert turns == 2 + -(-(len(expected) - 1) // (MOST + 1))


def test_after_wrong_guesses_fewer_steps_guess(guessing):
    asked, request = [], Request(prompt(9, 1), 60, GREEDY)
    expected = alone(request)

    def of(texts, rows, slots):
        asked.extend(len(text.new) for text in texts.values())
        return {row: [(expected[len(text.new)] + 1) % V] for row, text in texts.items()}

    guessing.guesses = SimpleNamespace(of=of)
    assert continued(guessing, [request]) == [expected]
    assert np.diff(asked).tolist() == [1, 3, 7, 15, 16, 16]


def test_a_text_that_ends_among_guesses_ends_there(guessing):
    expected = alone(ASKED[0])
    guessing.guesses = Told({ASKED[0].ids: expected}, MOST)
    stop = expected[3]
    (found,) = continued(guessing, [dataclasses.replace(ASKED[0], stop_ids=(stop,))])
    assert found == expected[: expected.index(stop) + 1]
    assert continued(guessing, [dataclasses.replace(ASKED[0], tokens=3)]) == [expected[:3]]


def test_a_form_and_biases_hold_with_guesses(long, guessing):
    odd = np.arange(V) % 2 == 1
    asked = [
        Request(prompt(9, 1), 8, Sampling(2.0), seed=3, bias={11: 4.0, 12: 4.0}, top=2),
        Request(prompt(9, 1), 8, GREEDY, allowed=Form(lambda new: odd)),
    ]
    expected = continued(Engine(long, ROWS), asked)
    for one, ids in zip(asked, expected, strict=True):
        guessing.guesses, before = Told({one.ids: ids}, 2), guessing.figures()["guesses"]
        assert continued(guessing, [one]) == [ids]
    assert guessing.figures()["guesses"] == before  # no guesses of a form: each would need a mask
    assert all(id % 2 for id in expected[1])


def test_what_stood_there_before_is_looked_up():
    guessed = lambda *ids: Lookup().of({4: Next(Request(ids[:1], 9, GREEDY), ids[1:])}, 2, 512)[4]  # noqa: E731
    assert guessed(1, 2, 3, 9, 8, 7, 6, 5, 4, 1, 2, 3) == [9, 8, 7, 6, 5]
    assert guessed(1, 2, 3, 9, 7, 2, 3, 8, 0, 1, 2, 3) == [9, 7, 2, 3, 8]  # of three tokens, not of the last two
    assert guessed(2, 3, 9, 2, 3, 8, 0, 2, 3) == [8, 0, 2, 3, 8]  # the last place, and over again
    assert guessed(5, 5, 5) == [5] * MOST and guessed(5, 5) == guessed(7) == guessed(1, 2, 3, 4) == []


def test_texts_that_repeat_are_guessed_from_themselves(long, guessing):
    guessing.guesses = Lookup()
    asked = Request(prompt(12, 4) * 3, 60, Sampling(0.3), seed=1, bias=dict.fromkeys(range(20, 23), 40.0))
    before = guessing.figures()["guesses"]
    assert continued(guessing, [asked]) == continued(Engine(long, ROWS), [asked])
    assert guessing.figures()["guesses"] > before


@pytest.fixture(scope="module")
def small(long):
    return SimpleNamespace(**vars(long) | {"model": 1, "context_length": 600})


def test_a_smaller_model_guesses(long, small, guessing):
    """Of itself, a model guesses all tokens right, sampled ones too; another one guesses what it would write."""
    expected = list(map(alone, ASKED[:2]))
    guessing.guesses, before = Draft(long), guessing.figures()
    for one, ids in zip(ASKED, expected, strict=False):
        assert continued(guessing, [one]) == [ids]
    assert continued(guessing, ASKED[:2]) == expected
    guessed, right = (guessing.figures()[name] - before[name] for name in ("guesses", "right_guesses"))
    assert right > 0.9 * guessed > 0
    guessing.guesses = Draft(small)
    assert continued(guessing, ASKED) == list(map(alone, ASKED))


def test_what_a_smaller_model_guesses_is_what_it_would_write(long, small, monkeypatch):
    draft, own = Draft(small), alone(ASKED[1], 1)
    for count in (0, 3, 4, 1):  # as texts go on, and another one that begins alike
        text = Next(ASKED[1], tuple(own[:count]))
        assert draft.of({1: text}, 2, 512) == {1: own[count : count + MOST]}
    others = range(5, 5 + MOST + 1)  # as many as are read at once, none of which it guessed
    goes_on = dataclasses.replace(ASKED[1], ids=(*ASKED[1].ids, *others), tokens=MOST)
    assert draft.of({1: Next(ASKED[1], tuple(others))}, 2, 512) == {1: alone(goes_on, 1)}
    monkeypatch.setattr(guesses, "PIECES", 4)
    other = Request(prompt(CHUNK * 14 + 10, 8), 9, GREEDY)
    assert draft.of({0: Next(other, ())}, 2, 512) == {}  # more than it reads at a time
    assert draft.of({0: Next(other, ())}, 2, 512) == {0: alone(other, 1)[:MOST]}
    full = Request(prompt(512 - MOST), 9, GREEDY)  # it leaves room for the guesses alone
    assert [draft.of({0: Next(full, ())}, 2, 512) for _ in range(2)] == [{}, {0: alone(full, 1)[:MOST]}]
    assert draft.of({0: Next(Request(prompt(513 - MOST), 9, GREEDY), ())}, 2, 512) == {}


def test_a_model_with_other_tokens_does_not_guess(session):
    size = session.tokenizer.vocabulary_size
    check_draft(session, session, "small")
    same_size = SimpleNamespace(vocabulary_size=size, bytes_of=lambda token: b"x")
    for other in (same_size, SimpleNamespace(vocabulary_size=1)):
        with pytest.raises(UserError, match=r"^--draft small: its tokens are not those of the model"):
            check_draft(dataclasses.replace(session, tokenizer=other), session, "small")


def test_a_text_that_is_given_up_while_guesses_are_checked_is_counted_nowhere(guessing):
    expected = alone(ASKED[0])
    guessing.guesses = Told({ASKED[0].ids: expected}, MOST)
    before = guessing.figures()
    number = guessing.submit(ASKED[0], lambda token: None)
    guessing.step()
    guessing.step()  # six tokens are on their way
    guessing.cancel(number)
    assert not guessing.step()
    names = "guesses", "right_guesses", "new_tokens"
    assert [guessing.figures()[name] - before[name] for name in names] == [0, 0, 1]
