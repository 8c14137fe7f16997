"""Texts of many prompts at once, several answers to one prompt, and one text as it is written."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.eight_devices import printed
from tests.engine.chain import alone, prompt
from tests.engine.test_forward import greedy_by_full_forward
from tpullm.engine import generation
from tpullm.engine import session as session_module
from tpullm.engine.engine import Engine
from tpullm.engine.generation import (
    LOOK_EVERY,
    answer_questions,
    continuations_by_end,
    continue_prompts,
    decode_batch,
    sample_texts,
    stream_tokens,
)
from tpullm.engine.request import Request
from tpullm.engine.session import Session
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system.errors import UserError

PROMPTS = [[1, 300, 40, 77], [1, 9, 400, 300, 22, 501, 17, 5, 90], [1]]


@pytest.fixture(scope="module")
def free(session):
    """Texts that nothing ends. The other tests of `decode_batch` have the same shapes, so they share its programs."""
    return decode_batch(session, PROMPTS, tokens=12, stop_ids=[])


def test_prompts_of_different_lengths_decode_more_as_each_would_alone(session, free):
    assert [ids[:7] for ids in free] == [greedy_by_full_forward(session, ids, 7) for ids in PROMPTS]


@pytest.mark.ci
def test_layers_that_are_read_where_they_stand_give_the_same_tokens(session, free, monkeypatch):
    monkeypatch.setattr(session_module, "decodes_separate_layers", lambda: False)
    stacked = dataclasses.replace(session)
    assert stacked.layers is None and session.layers is not None
    assert decode_batch(stacked, PROMPTS, tokens=12, stop_ids=[]) == free


def test_a_sampled_text_continues_alike_from_any_of_its_tokens(session, free):
    sampling, seeds = Sampling(temperature=1.5, min_p=0.0), [5, 6, 7]
    whole = decode_batch(session, PROMPTS, 7, sampling, seeds, stop_ids=[])
    assert whole != [ids[:7] for ids in free]
    for done in (1, 4):
        begun = [[*ids, *new[:done]] for ids, new in zip(PROMPTS, whole, strict=True)]
        assert decode_batch(session, begun, 7 - done, sampling, seeds, stop_ids=[]) == [new[done:] for new in whole]


def test_several_answers_to_a_prompt_are_those_of_the_prompt_repeated(session):
    """And other seeds give other texts, the same seed the same."""
    drawn = 6, Sampling(40.0, 0, 1.0, 0.0), [0, 1, 2, 2]
    several = decode_batch(session, PROMPTS[:2], *drawn, each=2)
    assert several == decode_batch(session, [ids for ids in PROMPTS[:2] for _ in range(2)], *drawn)
    assert several[2] == several[3] and len({tuple(ids) for ids in several}) == 3


def test_a_text_ends_with_its_stop_token(session, free):
    stop = free[0][5]
    unused = [token for token in range(600, 604) if token not in sum(free, [])]
    found = decode_batch(session, PROMPTS, 12, stop_ids=[stop])
    assert found == decode_batch(session, PROMPTS, 12, stop_ids=[*unused, stop])
    for whole, stopped in zip(free, found, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert stopped == whole[:end]


def test_a_batch_never_goes_beyond_the_context(session, free, monkeypatch):
    monkeypatch.setattr(Session, "context_length", 14)
    found = decode_batch(session, PROMPTS, 12, stop_ids=[])
    assert found == [new[: 14 - len(ids)] for ids, new in zip(PROMPTS, free, strict=True)]


@pytest.mark.parametrize(
    "meshes", [pytest.param("some", marks=pytest.mark.ci), pytest.param("others", marks=pytest.mark.slow)]
)
def test_a_mesh_samples_the_answers_of_one_device(meshes):
    """Rows on several devices, heads on several, and rows that are split in training, which a single token can't be.

    The same of the texts that the engine writes, and of the codes and the likeliest tokens of a model in 4 bits.
    """
    for found in printed("tests.engine.sharded_answers", meshes):
        expected = found.pop("{}")
        assert found and len({str(ids) for ids in expected}) > 3
        for shape, answers in found.items():
            assert answers == expected, shape


@pytest.fixture
def short(long):
    """A session of 32 tokens whose engines have no model."""
    return SimpleNamespace(**vars(long) | {"context_length": 32})


def test_texts_ask_for_their_prompts_the_stops_and_their_seeds(session, monkeypatch):
    """Each question begins a conversation, and has the likeliest answer; other texts have the default settings."""
    asked, rows = [], []

    def continued(session, requests, *batch):
        asked.extend(requests)
        rows.extend(batch)
        return [session.tokenizer.encode("雨です。") for _ in requests]

    monkeypatch.setattr(generation, "continue_prompts", continued)
    tokenizer, prompts = session.tokenizer, ["今日は", "私は"]
    stops = tuple(tokenizer.stop_ids)
    assert sample_texts(session, prompts, tokens=6, seed=3) == ["雨です。"] * 2
    assert sample_texts(session, [], 6, 3) == []
    ids = [(*tokenizer.begin, *tokenizer.encode(prompt)) for prompt in prompts]
    assert asked == [Request(own, 6, Sampling(), 3 + n, stops) for n, own in enumerate(ids)]
    sample_texts(session, ["雨" * 99], tokens=6, seed=0)
    assert len(asked.pop().ids) == session.context_length - 1
    asked.clear()
    assert answer_questions(session, prompts, batch=2, tokens=5) == ["雨です。"] * 2 and rows == [2]
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    ids = [tuple(tokenizer.chat_template(talk, add_generation_prompt=True)[0]) for talk in talks]
    assert asked == [Request(own, 5, GREEDY, stop_ids=stops) for own in ids]


def test_a_prompt_that_is_the_context_has_no_text_and_a_longer_one_is_refused(short):
    full, other = Request((5,) * 32, 4, GREEDY), Request((5, 6), 4, GREEDY)
    assert continue_prompts(short, [full, other]) == [[], alone(other)]
    assert continue_prompts(short, [full]) == [[]] and continue_prompts(short, []) == []
    longer = [1] * 33
    for write in (
        lambda: continue_prompts(short, [other, Request(tuple(longer), 4, GREEDY)]),
        lambda: next(stream_tokens(short, longer, 4, GREEDY)),
        lambda: decode_batch(short, [longer], 4),
    ):
        with pytest.raises(UserError, match=r"33 tokens.* holds 32"):
            write()


@pytest.mark.parametrize("lengths, slots", [((17, 400), 512), ((600, 620), 640)])
def test_texts_of_like_length_share_their_programs(long, monkeypatch, lengths, slots):
    """Each number of rows and each length of them is a program, and every task has another longest text."""
    made = []
    of_engine = lambda *given, **more: made.append(given[1:]) or Engine(*given, **more)  # noqa: E731
    monkeypatch.setattr(generation, "Engine", of_engine)
    for length in lengths:
        request = Request(prompt(length), 4, GREEDY)
        assert continue_prompts(long, [request]) == [alone(request)]
    assert made == [(1, slots)] * len(lengths)


def test_a_text_that_is_over_is_continued_for_a_while_at_most(long):
    """It begins with the same tokens; one that is not over has all of its."""
    asked, looked = [Request(ids, 28, GREEDY) for ids in ((1, 300, 40), (1, 9, 17, 5))], []
    is_over = lambda number, ids: looked.append(len(ids)) or number == 0  # noqa: E731
    found = dict(continuations_by_end(long, asked, is_over=is_over))
    assert found == {0: alone(asked[0])[:LOOK_EVERY], 1: alone(asked[1])} and looked == [LOOK_EVERY] * 2


def test_a_stream_gives_the_tokens_of_its_text_up_to_a_stop(short):
    request = Request((1, 300, 40), 10, Sampling(1.0, min_p=0.0), 5)
    whole = alone(request)
    assert list(stream_tokens(short, request.ids, 10, request.sampling, 5, [])) == whole
    stopped = list(stream_tokens(short, request.ids, 10, request.sampling, 5, stop_ids=[whole[5]]))
    assert stopped == whole[: whole.index(whole[5]) + 1]


@pytest.mark.parametrize("length", [4, 30])
def test_a_stream_goes_on_from_the_last_half_of_the_context_when_it_is_full(short, length):
    engine, ids = Engine(short, 1), prompt(length)
    new = list(stream_tokens(short, ids, 8, GREEDY, stop_ids=[], engine=engine))
    first = alone(Request(ids, min(8, 32 - length), GREEDY))
    half = (*ids, *first)[-16:]
    assert new == [*first, *alone(Request(half, 8 - len(first), GREEDY))] and len(new) == 8
    assert engine.figures()["prompt_tokens"] == length + (len(half) if len(first) < 8 else 0)


def test_a_stream_that_nobody_reads_is_given_up(short):
    engine = Engine(short, 1)
    texts = stream_tokens(short, [1, 6], 9, GREEDY, stop_ids=[], engine=engine)
    first = next(texts)
    texts.close()
    assert next(stream_tokens(short, [1, 6], 9, GREEDY, engine=engine)) == first
    assert engine.figures()["running"] == 1 and not engine.figures()["waiting"]


def test_one_program_serves_prompts_and_settings_alike(short):
    engine = Engine(short, 1)
    list(stream_tokens(short, [1, 5], 3, Sampling(temperature=0.7), 1, engine=engine))
    programs = set(engine._cache.programs)
    for ids, sampling in (([1, 6, 9], Sampling(1.0, 3, 0.5, 0.1)), ([1] * 12, GREEDY)):
        list(stream_tokens(short, ids, 5, sampling, 2, engine=engine))
    assert engine._cache.programs == programs
