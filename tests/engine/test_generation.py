"""Texts of many prompts at once, several answers to one prompt, and one text as it is written."""

import dataclasses

import numpy as np
import pytest

from tests.eight_devices import printed
from tests.engine.engine_texts import greedy_by_full_forward
from tpullm.engine import forward, generation
from tpullm.engine import sampling as sampling_module
from tpullm.engine import session as session_module
from tpullm.engine.engine import Engine
from tpullm.engine.generation import LOOK_EVERY, answer, as_they_end, continued, decode, sampled, stream
from tpullm.engine.request import Request
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system.errors import UserError

PROMPTS = [[1, 300, 40, 77], [1, 9, 400, 300, 22, 501, 17, 5, 90], [1]]


def test_prompts_of_different_lengths_decode_more_as_each_would_alone(session):
    together = decode(session, PROMPTS, tokens=12, stop_ids=[])
    assert together == [greedy_by_full_forward(session, ids, 12) for ids in PROMPTS]


def test_layers_that_are_read_where_they_stand_give_the_same_tokens(session, monkeypatch):
    expected = decode(session, PROMPTS, tokens=12, stop_ids=[], each=2)
    monkeypatch.setattr(session_module, "decodes_separate_layers", lambda: False)
    stacked = dataclasses.replace(session)
    assert stacked.layers is None and session.layers is not None
    assert decode(stacked, PROMPTS, tokens=12, stop_ids=[], each=2) == expected


def test_a_sampled_text_continues_alike_from_any_of_its_tokens(session):
    sampling = Sampling(temperature=1.5, min_p=0.0)
    (whole,) = decode(session, PROMPTS[:1], tokens=8, sampling=sampling, seeds=[5], stop_ids=[])
    for done in (1, 4, 7):
        begun = [[*PROMPTS[0], *whole[:done]]]
        assert decode(session, begun, 8 - done, sampling, seeds=[5], stop_ids=[]) == [whole[done:]]


def test_several_answers_to_a_prompt_are_those_of_the_prompt_repeated(session):
    """And other seeds give other texts, the same seed the same."""
    sampling, seeds = Sampling(40.0, 0, 1.0, 0.0), [*range(8), 6]
    found = decode(session, PROMPTS, 6, sampling, seeds, each=3)
    assert found == decode(session, [ids for ids in PROMPTS for _ in range(3)], 6, sampling, seeds)
    assert found[6] == found[8] and len({tuple(ids) for ids in found}) == 8


def test_a_text_ends_with_its_stop_token(session):
    free = decode(session, PROMPTS, tokens=12, stop_ids=[])
    stop = free[0][5]
    unused = [token for token in range(600, 604) if token not in sum(free, [])]
    assert decode(session, PROMPTS, 12, stop_ids=[*unused, stop]) == decode(session, PROMPTS, 12, stop_ids=[stop])
    for whole, stopped in zip(free, decode(session, PROMPTS, 12, stop_ids=[stop]), strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert stopped == whole[:end]


def test_a_batch_never_goes_beyond_the_context(session):
    prompt = [1] + [40] * 24
    assert len(decode(session, [prompt], tokens=16, stop_ids=[])[0]) == session.context_length - 25


@pytest.mark.ci
def test_a_mesh_samples_the_answers_of_one_device():
    """Rows on several devices, heads on several, and rows that are split in training, which a single token can't be.

    The same of the texts that the engine writes, and of the codes and the likeliest tokens of a model in 4 bits.
    """
    for found in printed("tests.engine.sharded_answers"):
        expected = found.pop("{}")
        assert found and len({str(ids) for ids in expected}) > 3
        for shape, answers in found.items():
            assert answers == expected, shape


def test_each_question_gets_the_answer_it_gets_alone(session):
    questions = ["本?", "リンゴが好きですか。", "傘", "本をどうしますか。", "雪"]
    tokenizer = session.tokenizer
    for question, found in zip(questions, answer(session, questions, batch=2, tokens=5), strict=True):
        prompt, _ = tokenizer.chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        alone = decode(session, [prompt], 5, stop_ids=[tokenizer.end_id, tokenizer.eos_id])[0]
        assert found == tokenizer.decode(alone)


def test_a_sampled_text_continues_its_prompt_with_the_default_settings_and_the_seed(session, monkeypatch):
    asked = []

    def continued(session, requests):
        asked.extend(requests)
        return [session.tokenizer.encode("雨です。") for _ in requests]

    monkeypatch.setattr(generation, "continued", continued)
    tokenizer, prompts = session.tokenizer, ["今日は", "私は"]
    assert sampled(session, prompts, tokens=6, seed=3) == ["雨です。"] * 2
    ids = [(*tokenizer.begin, *tokenizer.encode(prompt)) for prompt in prompts]
    assert asked == [Request(own, 6, Sampling(), 3 + n, tuple(tokenizer.stop_ids)) for n, own in enumerate(ids)]
    assert sampled(session, [], tokens=6, seed=3) == []


def test_a_prompt_that_fills_the_context_leaves_room_for_a_token(session):
    (text,) = sampled(session, ["雨" * 99], tokens=6, seed=0)
    assert len(session.tokenizer.encode(text)) <= 1


def test_a_prompt_that_is_the_context_has_no_text_and_a_longer_one_is_refused(session):
    full, short = Request((5,) * 32, 4, GREEDY), Request((5, 6), 4, GREEDY)
    assert continued(session, [full, short]) == [[], decode(session, [[5, 6]], 4, stop_ids=[])[0]]
    assert continued(session, [full]) == [[]] and continued(session, []) == []
    longer = [1] * 33
    for write in (
        lambda: continued(session, [short, Request(tuple(longer), 4, GREEDY)]),
        lambda: next(stream(session, longer, 4, GREEDY)),
        lambda: decode(session, [longer], 4),
    ):
        with pytest.raises(UserError, match=r"33 tokens.* holds 32"):
            write()


@pytest.mark.parametrize("lengths, slots", [((17, 400), 512), ((600, 620), 640)])
def test_texts_of_like_length_share_their_programs(long, monkeypatch, lengths, slots):
    """Each number of rows and each length of them is a program, and every task has another longest text."""

    class Made(Exception):
        pass

    def engine(session, rows, longest, reads_first):
        raise Made(rows, longest)

    monkeypatch.setattr(generation, "Engine", engine)
    for length in lengths:
        with pytest.raises(Made) as made:
            continued(long, [Request((5,) * length, 4, GREEDY)])
        assert made.value.args == (1, slots)


def test_a_text_that_is_over_is_continued_for_a_while_at_most(session):
    """It begins with the same tokens; one that is not over has all of its."""
    asked = [Request(ids, 28, GREEDY) for ids in ((1, 300, 40), (1, 9, 17, 5))]
    whole = dict(as_they_end(session, asked))
    looked = []

    def is_over(number, ids):
        looked.append(len(ids))
        return number == 0

    found = dict(as_they_end(session, asked, is_over=is_over))
    assert found == {0: whole[0][:LOOK_EVERY], 1: whole[1]} and len(whole[1]) == 28
    assert looked == [LOOK_EVERY] * 2


def test_a_stream_gives_the_same_tokens_as_a_batch(session):
    sampling = Sampling(temperature=1.0, min_p=0.0)
    together = decode(session, PROMPTS, tokens=10, sampling=sampling, seeds=[5, 6, 7], stop_ids=[])
    alone = [list(stream(session, ids, 10, sampling, seed, [])) for ids, seed in zip(PROMPTS, (5, 6, 7), strict=True)]
    assert together == alone
    stop = alone[0][5]
    stopped = list(stream(session, PROMPTS[0], 10, sampling, 5, stop_ids=[stop]))
    assert stopped == alone[0][: alone[0].index(stop) + 1]


def test_a_stream_goes_on_when_the_context_is_full(session):
    prompt = [1, *np.random.default_rng(0).integers(20, 500, 29).tolist()]
    new = list(stream(session, prompt, 8, GREEDY, stop_ids=[]))
    assert len(new) == 8
    half = [*prompt, *new[:2]][-16:]
    assert new[2:] == greedy_by_full_forward(session, half, 6)


@pytest.mark.parametrize(("length", "begun"), [(4, 1), (30, 2)])
def test_a_stream_reads_its_prompt_once_until_the_context_is_full(session, length, begun):
    engine = Engine(session, 1)
    assert len(list(stream(session, [1, *range(40, 39 + length)], 8, GREEDY, stop_ids=[], engine=engine))) == 8
    assert engine.figures()["prompt_tokens"] == [length, length + session.context_length // 2][begun - 1]


def test_a_stream_that_nobody_reads_is_given_up(session):
    engine = Engine(session, 1)
    texts = stream(session, [1, 6], 9, GREEDY, stop_ids=[], engine=engine)
    first = next(texts)
    texts.close()
    assert next(stream(session, [1, 6], 9, GREEDY, engine=engine)) == first
    assert engine.figures()["running"] == 1 and not engine.figures()["waiting"]


def test_one_program_serves_prompts_and_settings_alike(session):
    list(stream(session, [1, 5], 3, Sampling(temperature=0.7), 1))
    programs = [forward.read_layers, forward.advance, sampling_module.pick]
    before = [program._cache_size() for program in programs]
    for prompt, sampling in (([1, 6, 9], Sampling(1.0, 3, 0.5, 0.1)), ([1] * 12, GREEDY)):
        list(stream(session, prompt, 5, sampling, 2))
    assert [program._cache_size() for program in programs] == before
