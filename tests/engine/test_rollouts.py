"""Answers of the model that trains: tokens in, tokens out, on every resume the same."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.small import mesh
from tpullm.data.examples import Prompt
from tpullm.data.prompts import Prompts, PromptStream, tokenized
from tpullm.engine.generation import decode_batch
from tpullm.evaluation import scoring
from tpullm.model.architecture import Architecture
from tpullm.recipe.sampling import Sampling
from tpullm.recipe.schema import AdapterConfig, PolicyConfig, TrainConfig
from tpullm.system.errors import UserError
from tpullm.training.rewards.reward_set import Rewards
from tpullm.training.rollouts import OwnAnswers, Rollouts

SETTINGS = PolicyConfig("grpo", prompts=2, answers=3, tokens=6)


def prompts_of(session, count=5):
    examples = [Prompt([{"role": "user", "content": f"{n}は？"}]) for n in range(count)]
    return tokenized(examples, session.tokenizer, 26, "rules")


@pytest.fixture(scope="module")
def rollouts(session, tmp_path_factory):
    config = TrainConfig(batch_size=4, sequence_length=32)
    rewards = Rewards([{"name": "length", "most": 3}, {"name": "language", "language": "ja", "weight": 0.5}])
    parts = (session.tokenizer, session.architecture, session.mesh, session.dtype)
    prompts, kept = prompts_of(session), tmp_path_factory.mktemp("kept")
    yield Rollouts(prompts, prompts, SETTINGS, config, *parts, 3, kept, rewards)
    rewards.close()


CHOSEN = np.array([1, 4])


def test_what_is_learned_from_are_the_tokens_that_were_sampled(rollouts, session):
    """The answers of step 7 to the chosen prompts, of which some do not survive to be decoded and encoded."""
    ids, seeds = [prompts_of(session).ids[n] for n in CHOSEN], np.random.SeedSequence([3, 7]).generate_state(6)
    said = decode_batch(session, ids, 6, Sampling(1.0, 0, 1.0, 0.0), seeds.tolist(), each=3)
    with jax.set_mesh(session.mesh):
        batch, figures = rollouts.batch(7, session.params, CHOSEN)
    found = sorted(
        [*batch.targets[row][batch.answers[row] == number]]
        for row in range(len(batch.targets))
        for number in range(1, batch.answers[row].max() + 1)
    )
    assert found == sorted(said) and len(set(map(tuple, said))) > 1
    tokenizer = session.tokenizer
    assert any(tokenizer.encode(tokenizer.decode(answer)) != answer for answer in said)
    assert figures["answers"] == 6 and figures["answer_tokens"] == np.mean([len(answer) for answer in said])
    assert figures["rewards"].keys() == {"length", "language", "sum"}
    total = figures["rewards"]["length"] + 0.5 * figures["rewards"]["language"]
    assert figures["rewards"]["sum"] == pytest.approx(total)


def test_the_same_step_has_the_same_answers_and_another_step_has_others(rollouts, session):
    chosen = np.array([0, 2])
    with jax.set_mesh(session.mesh):
        one, again, other = (rollouts.batch(step, session.params, chosen)[0] for step in (4, 4, 5))
    np.testing.assert_array_equal(one.targets, again.targets)
    np.testing.assert_array_equal(one.advantages, again.advantages)
    assert one.targets.shape != other.targets.shape or (one.targets != other.targets).any()


def test_steps_that_learn_from_the_same_answers_read_them_from_the_stage(rollouts, session):
    twice = dataclasses.replace(rollouts, settings=dataclasses.replace(SETTINGS, updates=2))
    chosen = np.array([0, 2])
    with jax.set_mesh(session.mesh):
        first, _ = twice.batch(4, session.params, chosen)
        resumed = dataclasses.replace(twice, _kept={})
        second, figures = resumed.batch(5, session.params, chosen)
    assert figures is None and first.first and not second.first
    for name in ("inputs", "targets", "answers", "advantages", "old", "weights"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (second.old[second.answers > 0] < 0).all()


@pytest.mark.ci
def test_each_tenth_step_says_how_likely_its_answers_are_for_the_base(rollouts, session):
    """Those to the first quarter of the prompts, by the model without its adapter, each answer alone."""
    architecture = Architecture(session.architecture.config, AdapterConfig(rank=2))
    with jax.set_mesh(session.mesh):
        drawn = architecture.trained(jax.jit(architecture.init)(jax.random.key(1)))
        params = architecture.whole(jax.tree.map(lambda leaf: leaf + 0.05, drawn), session.params)
        adapted = dataclasses.replace(rollouts, architecture=architecture)
        (batch, figures), (_, others) = (adapted.batch(step, params, np.array([1, 4])) for step in (10, 11))
    assert "base_likelihood" not in others
    prompt, found = adapted.prompts.ids[1], []
    for answer in adapted.sampled(10, params, np.array([1, 4]))[0]:
        logits = scoring.logits(session, np.array([[*prompt, *answer]]))[0, len(prompt) - 1 : -1]
        found += jax.nn.log_softmax(logits)[np.arange(len(answer)), np.array(answer)].tolist()
    assert figures["base_likelihood"] == pytest.approx(np.mean(found), abs=1e-4)


@pytest.mark.ci
def test_held_out_prompts_are_judged_by_their_likeliest_answers(rollouts, session):
    found, said = rollouts.evaluate(session.params), decode_batch(session, rollouts.held_out.ids, 6)
    assert [each["answer"] for each in found["eval_answers"]] == list(map(session.tokenizer.decode, said))
    total = found["eval_reward"]["length"] + 0.5 * found["eval_reward"]["language"]
    assert found["eval_reward"]["sum"] == pytest.approx(total)
    assert dataclasses.replace(rollouts, held_out=None).evaluate(session.params) == {}


def test_every_prompt_is_answered_once_in_an_epoch_and_rollbacks_are_counted():
    prompts = Prompts([Prompt([{"role": "user", "content": str(n)}]) for n in range(6)], [[n] for n in range(6)])
    stream = PromptStream(prompts, 3, seed=0)
    epochs = [np.concatenate([stream.at(step), stream.at(step + 1)]).tolist() for step in (0, 2)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and epochs[0] != epochs[1]
    without = stream.without([(1, 2)])
    assert without.at(0).tolist() == stream.at(0).tolist() and without.at(1).tolist() == stream.at(3).tolist()
    assert [each.tolist() for each in stream.batches(1, 3)] == [stream.at(1).tolist(), stream.at(2).tolist()]
    twice = PromptStream(prompts, 3, seed=0, updates=2)
    assert twice.at(0).tolist() == twice.at(1).tolist() != twice.at(2).tolist()
    assert [piece.document for piece in stream.documents_at(1)] == stream.at(1).tolist()


def test_prompts_that_leave_no_room_for_an_answer_are_left_out(session):
    long = [Prompt([{"role": "user", "content": "雨" * n}]) for n in (1, 60)]
    assert len(tokenized(long, session.tokenizer, 26, "rules")) == 1
    refusal = r"^rules: no prompt of at most 26 tokens \(the shortest has \d+\), since a row"
    with pytest.raises(UserError, match=refusal):
        tokenized(long[1:], session.tokenizer, 26, "rules")


END = 7


def own_answers(batch_size=8, accumulation=1):
    """Of all that it holds, what the functions under test read."""
    config = TrainConfig(batch_size=batch_size, accumulation=accumulation)
    return OwnAnswers(None, None, None, config, SimpleNamespace(stop_ids=(END,)), None, mesh(), None, 0)


@given(st.integers(1, 400), st.integers(1, 4))
def test_at_most_a_fifth_of_a_batch_is_empty_and_few_sizes_are_possible(parts, accumulation):
    sizes = own_answers(parts * accumulation, accumulation).possible_rows()
    assert sizes == sorted(set(sizes)) and sizes[-1] == parts * accumulation
    assert all(size % accumulation == 0 for size in sizes)
    for needed in range(1, parts + 1):
        taken = min(size for size in sizes if size >= needed * accumulation)
        assert taken - needed * accumulation <= taken / 5
    assert len(sizes) <= 8 + 4 * parts.bit_length()


def test_what_the_log_says_of_answers():
    said = [[1, 2, END], [1, 2, 3, 4, 5, 6], [3, 3, 3, 3, 3, END]]
    # The last has the runs 3333, 3333 and 333(END): one of three stood before.
    expected = {"answers": 3, "answer_tokens": 5.0, "cut_off": 1 / 3, "repeated": 1 / 9}
    assert own_answers().figures(said) == {name: pytest.approx(value) for name, value in expected.items()}
