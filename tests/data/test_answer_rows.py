"""Sampled answers in rows: every token once, behind its prompt, in as few rows as were promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data.answer_rows import answers_in_rows, rows_needed
from tpullm.data.batch import BRANCH
from tpullm.recipe.schema import PolicyConfig

LENGTH = 24


@st.composite
def sampled(draw):
    """Prompts of 1 to 8 tokens, and as many answers of 1 to 9 to each."""
    count, each = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    ids = lambda most: st.lists(st.integers(1, 99), min_size=1, max_size=most)  # noqa: E731
    prompts = draw(st.lists(ids(8), min_size=count, max_size=count))
    answers = draw(st.lists(st.lists(ids(9), min_size=each, max_size=each), min_size=count, max_size=count))
    return prompts, answers


@given(sampled())
@settings(deadline=None)
def test_every_token_is_predicted_once_from_what_stood_before_it(given):
    prompts, answers = given
    shape = len(prompts), len(answers[0])
    advantages = np.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape)
    most = rows_needed(*shape, max(map(len, prompts)), max(len(ids) for of in answers for ids in of), LENGTH)
    batch, places = answers_in_rows(prompts, answers, advantages, PolicyConfig(), LENGTH, [most])
    assert len(places) == len(set(map(tuple, places.tolist()))) == sum(len(ids) for of in answers for ids in of)
    found = iter(places.tolist())
    for group, prompt in enumerate(prompts):
        for number, answer in enumerate(answers[group]):
            where = tuple(np.array([next(found) for _ in answer]).T)
            row = where[0][0]
            assert batch.targets[where].tolist() == answer
            assert batch.inputs[where].tolist() == [prompt[-1], *answer[:-1]]
            assert (batch.advantages[where] == advantages[group, number]).all() and (batch.weights[where] == 1).all()
            assert batch.positions[where].tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(answer)))
            (segment,), (of_answer,) = set(batch.segment_ids[where].tolist()), set(batch.answers[where].tolist())
            assert (batch.segment_ids[row] == segment).sum() == (batch.answers[row] == of_answer).sum() == len(answer)
            assert segment >= BRANCH
            before = row, batch.segment_ids[row] == segment % BRANCH
            assert batch.inputs[before].tolist() == prompt[:-1]
            assert batch.positions[before].tolist() == list(range(len(prompt) - 1))
    prompted = batch.answers == 0
    assert (batch.weights[prompted] == 0).all() and (batch.advantages[prompted] == 0).all()
    said = int(batch.answers.max())
    assert said <= batch.sequences < 2 * said and batch.sequences & (batch.sequences - 1) == 0


@pytest.mark.parametrize(("length", "rows"), [(25, 2), (24, 3), (17, 3), (16, 6)])
def test_as_many_answers_stand_in_a_row_as_fit(length, rows):
    """Six answers of 8 tokens to a prompt that takes one token of a row: three in 25 tokens, two in 17, one in 16."""
    prompt, answers = [5] * 2, [[[7] * 8] * 6]
    assert rows_needed(1, 6, 2, 8, length) == rows
    batch, _ = answers_in_rows([prompt], answers, np.ones((1, 6)), PolicyConfig(), length, list(range(1, 9)))
    assert len(batch.inputs) == rows
