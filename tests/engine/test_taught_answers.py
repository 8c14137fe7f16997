"""A teacher corrects answers that the model gave itself: at each place it says what it says of that answer alone."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.engine.test_rollouts import SETTINGS, prompts_of
from tests.training.objectives.answers import alone
from tpullm.data.batch import BRANCH
from tpullm.recipe.schema import TeacherConfig, TrainConfig
from tpullm.training.objectives.distillation import Teacher
from tpullm.training.teaching import TaughtAnswers


@pytest.fixture(scope="module")
def taught(session):
    """The model is its own teacher, by other parameters."""
    load = lambda: jax.tree.map(lambda leaf: 1.1 * leaf, session.params)  # noqa: E731
    options = (session.architecture, load, session.mesh, session.dtype, session.architecture.config.vocabulary_size)
    teacher = Teacher(TeacherConfig("other", "reverse_kl", top=4), *options)
    parts = (session.tokenizer, session.architecture, session.mesh, session.dtype, 3)
    train = TrainConfig(batch_size=4, sequence_length=32)
    return TaughtAnswers(prompts_of(session), prompts_of(session), SETTINGS, train, *parts, teacher)


def test_at_each_place_the_teacher_says_what_it_says_of_the_answer_alone(taught, session):
    chosen = np.array([1, 4])
    with jax.set_mesh(session.mesh):
        (batch, figures), (again, _) = (taught.batch(7, session.params, chosen) for _ in range(2))
    said = taught.sampled(7, session.params, chosen)
    np.testing.assert_array_equal(batch.targets, again.targets)
    np.testing.assert_array_equal(batch.logps, again.logps)
    answers = [(taught.prompts.ids[n], ids) for n, of_prompt in zip(chosen, said, strict=True) for ids in of_prompt]
    assert figures["answers"] == len(answers) == 6 and batch.weights.sum() == sum(len(ids) for _, ids in answers)
    params, found = taught.teacher.load(), 0
    for prompt, ids in answers:
        row = alone(prompt, ids)
        places = row.weights > 0
        wanted = [array[places] for array in taught.teacher.says(params, row)]
        for begin in zip(*np.nonzero(batch.weights), strict=True):
            where = begin[0], slice(begin[1], begin[1] + len(ids))
            segments = batch.segment_ids[begin[0]]
            before = batch.inputs[begin[0]][segments == segments[begin[1]] % BRANCH].tolist()
            begins = batch.positions[begin] == len(prompt) - 1 and [*before, batch.inputs[begin]] == prompt
            if begins and batch.targets[where].tolist() == ids:
                # In float32, in rows that are laid out otherwise.
                np.testing.assert_allclose(batch.logps[where], wanted[1], atol=1e-4)
                np.testing.assert_array_equal(batch.ids[where], wanted[0])
                found += 1
                break
    assert found == 6


@pytest.mark.ci
def test_held_out_answers_are_compared_with_the_teacher(taught, session):
    """A student that is its teacher is nowhere away from it."""
    with jax.set_mesh(session.mesh):
        away = taught.evaluate(session.params)
        itself = dataclasses.replace(taught.teacher, load=lambda: session.params)
        same = dataclasses.replace(taught, teacher=itself).evaluate(session.params)
        none = dataclasses.replace(taught, held_out=None).evaluate(session.params)
    assert away["eval_divergence"]["prompts"] > 1e-3 > 1e-4 > abs(same["eval_divergence"]["prompts"])
    assert len(away["eval_answers"]) == 5 and none == {}
