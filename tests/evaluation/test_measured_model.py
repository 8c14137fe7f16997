"""Answers depend on the request and the parameters alone, and none is computed twice."""

import dataclasses
import zlib
from contextlib import closing

import jax
import numpy as np
import pytest

from tpullm.evaluation import likelihoods, measured_model
from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import FILE, KeptAnswers, MeasuredModel, Writing, parameter_hash, request_key
from tpullm.model.architecture import Architecture
from tpullm.recipe.sampling import Sampling
from tpullm.system import storage
from tpullm.system.errors import UserError

DISTINCT = [Continuation((8 + n % 250, *range(20, 20 + n % 20)), (60 + n % 7,)) for n in range(280)]
REQUESTS = DISTINCT + DISTINCT[:20]
WRITINGS = [Writing((8 + n,), 6, ("す",)) for n in range(70)]


@pytest.fixture
def answers(monkeypatch):
    """The model answers in batches of 64. Gives the numbers of requests that it was asked, and after which it dies."""
    asked, dies = [], set()

    def ask(answer):
        def some(session, requests, done):
            asked.append(len(requests))
            for first in range(0, len(requests), 64):
                numbers = range(first, min(first + 64, len(requests)))
                done({number: answer(requests[number]) for number in numbers})
                if len(asked) in dies:
                    raise KeyboardInterrupt

        return some

    monkeypatch.setattr(likelihoods, "likelihoods", ask(lambda of: (-float(sum(of.context)), of.continuation[0] > 62)))
    monkeypatch.setattr(measured_model, "write_texts", ask(lambda of: [*of.prompt, 9]))
    return asked, dies


def answered(session, folder, parameters="x"):
    with closing(KeptAnswers(folder)) as kept:
        model = MeasuredModel(session, kept, parameters)
        return (model.likelihoods(REQUESTS), model.written(WRITINGS)), model.counts


def test_killed_and_resumed_is_as_uninterrupted(session, tmp_path, answers):
    """It is killed after some of the batches of each kind; what was answered is not computed again."""
    asked, dies = answers
    expected, counts = answered(session, tmp_path / "whole")
    assert counts == {"requests": 370, "kept": 0, "cut": 0} and asked == [280, 70]
    dies |= {3, 5}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            answered(session, tmp_path / "killed")
    found, counts = answered(session, tmp_path / "killed")
    assert found == expected and asked[2:] == [280, 216, 70, 0, 6]
    assert answered(session, tmp_path / "killed") == (expected, {"requests": 370, "kept": 370, "cut": 0})
    assert answered(session, tmp_path / "killed", parameters="others")[1]["kept"] == 0


def test_the_hash_is_of_all_parameters_and_of_the_model(session):
    """Each number counts, and its place."""
    whole = parameter_hash(session)
    assert whole == parameter_hash(dataclasses.replace(session))
    leaves, structure = jax.tree.flatten(session.params)

    def changed(number, change):
        array = np.array(leaves[number])
        change(array)
        params = [*leaves[:number], jax.device_put(array, leaves[number].sharding), *leaves[number + 1 :]]
        return parameter_hash(dataclasses.replace(session, params=structure.unflatten(params)))

    def moved(array):
        array.flat[array.size // 2] += 1e-3

    def swapped(array):
        array[[3, 5]] = array[[5, 3]]

    found = {changed(number, moved) for number in range(len(leaves))}
    found.add(changed(next(n for n, leaf in enumerate(leaves) if leaf is session.params["embedding"]), swapped))
    config = dataclasses.replace(session.architecture.config, rope_theta=77.0)
    found.add(parameter_hash(dataclasses.replace(session, architecture=Architecture(config))))
    assert len(found | {whole}) == len(leaves) + 3


@pytest.mark.parametrize("context, continuation", [((), (1,)), ((1,), ()), ((1,), tuple(range(8, 41)))])
def test_what_can_not_be_scored(session, context, continuation):
    with pytest.raises(UserError, match="the model scores 1 to 32 tokens after 1 or more"):
        MeasuredModel(session, parameters="x").likelihoods([Continuation(context, continuation)])


def test_a_text_is_that_of_its_request(session, monkeypatch):
    """In any order of requests, by its seed, and up to the first stop."""

    def as_they_end(session, asked, batch, is_over):
        for place, request in reversed(list(enumerate(asked))):
            new = []
            while len(new) < request.tokens and not is_over(place, new):
                new.append(8 + zlib.crc32(repr((request.ids, request.seed, new)).encode()) % 250)
            yield place, new

    monkeypatch.setattr(measured_model, "continuations_by_end", as_they_end)
    model = MeasuredModel(session, parameters="x")
    requests = [Writing(tuple(range(8, 9 + n)), 3 + n % 4, ("す",) * (n % 2)) for n in range(40)]
    requests += [Writing((8, 9), 8, (), Sampling(temperature=5.0), seed) for seed in (0, 1, 0)]
    whole, *together = model.written([Writing((8, 9), 12), *requests])
    assert together[-3] == together[-1] != together[-2] and len(set(together)) > 30
    *again, cut = model.written([*reversed(requests), Writing((8, 9), 12, (whole[3:5], "never"))])
    assert again == together[::-1] and cut == whole[: whole.index(whole[3:5])]


@pytest.mark.parametrize("tokens", [0, 32])
def test_no_room_for_a_prompt_or_for_a_text(session, tokens):
    told = f"a text of up to {tokens} tokens: the model's context holds 32, the prompt included; ask for 1 to 31"
    with pytest.raises(UserError, match=told):
        MeasuredModel(session, parameters="x").written([Writing((8,), tokens)])


KEYS = [request_key("model", ("likelihood", (1, 2), (n,))) for n in range(300)]


def added(folder, answers):
    with closing(KeptAnswers(folder)) as kept:
        kept.add(answers)


@pytest.mark.parametrize("remote", [False, True])
def test_what_was_added_is_found(tmp_path, bucket, remote):
    folder = storage.path(str(bucket)) / "measured" if remote else tmp_path
    added(folder, {KEYS[0]: [-1.25, True]})
    added(folder, {key: [float(n), False] for n, key in enumerate(KEYS[1:250], 1)})
    with closing(KeptAnswers(folder)) as kept:
        assert kept.found(KEYS) == [[-1.25, True], *([float(n), False] for n in range(1, 250)), *[None] * 50]


@pytest.mark.parametrize("left", [1, 20, 40])
def test_a_line_that_was_cut_off_is_as_if_it_was_not_there_and_another_one_is_named(tmp_path, left):
    """A process that is killed, or a full disk, leaves the beginning of a line."""
    added(tmp_path, {KEYS[0]: [1], KEYS[1]: [2]})
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: content.index(b"\n") + 1 + left])
    added(tmp_path, {KEYS[2]: [3]})
    with closing(KeptAnswers(tmp_path)) as kept:
        assert kept.found(KEYS[:4]) == [[1], None, [3], None]
    (tmp_path / FILE).write_text('{"key": "a", "answer": [1]}\n{"question": "x"}\n')
    with pytest.raises(UserError, match=f"{FILE}: line 2: is not an answer; remove the file"):
        KeptAnswers(tmp_path)
