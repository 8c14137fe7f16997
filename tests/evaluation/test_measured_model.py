"""Answers depend on the request and the parameters alone, and none is computed twice."""

import dataclasses

import jax
import numpy as np
import pytest

from tpullm.evaluation import likelihoods, measured_model
from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import FILE, KeptAnswers, MeasuredModel, Writing, key_of, parameter_hash
from tpullm.model.architecture import Architecture
from tpullm.recipe.sampling import Sampling
from tpullm.system import storage
from tpullm.system.errors import UserError

DISTINCT = [Continuation((8 + n % 250, *range(20, 20 + n % 20)), (60 + n % 7,)) for n in range(280)]
REQUESTS = DISTINCT + DISTINCT[:20]
WRITINGS = [Writing((8 + n,), 6, ("す",)) for n in range(70)]


def answered(session, folder):
    answers = KeptAnswers(folder)
    model = MeasuredModel(session, answers)
    found = model.likelihoods(REQUESTS), model.written(WRITINGS)
    answers.close()
    return found, model.counts


def test_killed_and_resumed_is_as_uninterrupted(session, tmp_path, monkeypatch):
    """It is killed after some of the batches of each kind; what was answered is not computed again."""
    expected, counts = answered(session, tmp_path / "whole")
    assert (counts.requests, counts.kept, counts.cut) == (370, 0, 0)
    asked = []

    def killed(function, after):
        def ask(session, requests, done):
            batches = 0
            asked.append(len(requests))

            def some(found):
                nonlocal batches
                done(found)
                batches += 1
                if batches == after:
                    raise KeyboardInterrupt

            function(session, requests, some)

        return ask

    one_row, write = likelihoods.likelihoods, measured_model.write
    monkeypatch.setattr(likelihoods, "TOKENS_ON_CPU", 512)
    for module, name, function in ((likelihoods, "likelihoods", one_row), (measured_model, "write", write)):
        monkeypatch.setattr(module, name, killed(function, 1))
        with pytest.raises(KeyboardInterrupt):
            answered(session, tmp_path / "killed")
        monkeypatch.setattr(module, name, killed(function, -1))
    found, counts = answered(session, tmp_path / "killed")
    assert found[1] == expected[1]
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)  # batches of another shape
        assert one.is_likeliest == other.is_likeliest
    distinct = len(DISTINCT)
    assert asked[0] == distinct and 0 < asked[1] < distinct and asked[-1] == 70 - 64
    assert answered(session, tmp_path / "killed")[1].kept == 370


def test_another_model_has_other_answers(session, other, tmp_path):
    one = answered(session, tmp_path)[0]
    two, counts = answered(other, tmp_path)
    assert counts.kept == 0 and one != two
    assert answered(session, tmp_path)[0] == one


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
        MeasuredModel(session).likelihoods([Continuation(context, continuation)])


def test_a_text_ends_before_the_first_stop(session):
    model = MeasuredModel(session)
    (whole,) = model.written([Writing((8, 9), 12)])
    stop = whole[3:5]
    (cut,) = model.written([Writing((8, 9), 12, (stop, "never"))])
    assert cut == whole[: whole.index(stop)]


def test_a_text_depends_on_nothing_but_its_request(session):
    """Prompts of other lengths beside it, other numbers of tokens, a prompt that is cut."""
    requests = [Writing(tuple(range(8, 9 + n)), 3 + n % 4, ("す",) * (n % 2)) for n in range(40)]
    together = MeasuredModel(session).written(requests)
    for number in (0, 7, 28, 29, 39):
        assert MeasuredModel(session).written([requests[number]]) == [together[number]]


def test_sampled_texts_differ_by_their_seed(session):
    sampling = Sampling(temperature=5.0)
    requests = [Writing((8, 9), 8, (), sampling, seed) for seed in (0, 1, 0)]
    one, two, again = MeasuredModel(session).written(requests)
    assert one == again != two


def test_no_room_for_a_prompt(session):
    with pytest.raises(UserError, match="a text of up to 32 tokens: the model's context holds 32, the prompt included"):
        MeasuredModel(session).written([Writing((8,), 32)])


def test_a_text_of_no_tokens(session):
    with pytest.raises(UserError, match="a text of 0 tokens: ask for 1 or more"):
        MeasuredModel(session).written([Writing((8,), 0)])


KEYS = [key_of("model", ("likelihood", (1, 2), (n,))) for n in range(300)]


def added(folder, answers):
    kept = KeptAnswers(folder)
    kept.add(answers)
    kept.close()


def test_what_was_added_is_found(tmp_path):
    added(tmp_path, {KEYS[0]: [-1.25, True]})
    added(tmp_path, {key: [float(n), False] for n, key in enumerate(KEYS[1:250], 1)})
    kept = KeptAnswers(tmp_path)
    assert kept.found(KEYS) == [[-1.25, True], *([float(n), False] for n in range(1, 250)), *[None] * 50]
    kept.close()


@pytest.mark.parametrize("left", [1, 20, 40])
def test_a_line_that_was_cut_off_is_as_if_it_was_not_there(tmp_path, left):
    """A process that is killed, or a full disk, leaves the beginning of a line."""
    added(tmp_path, {KEYS[0]: [1], KEYS[1]: [2]})
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: content.index(b"\n") + 1 + left])
    added(tmp_path, {KEYS[2]: [3]})
    kept = KeptAnswers(tmp_path)
    assert kept.found(KEYS[:4]) == [[1], None, [3], None]
    kept.close()


def test_a_line_of_something_else_is_named(tmp_path):
    added(tmp_path, {KEYS[0]: [1]})
    with open(tmp_path / FILE, "a") as file:
        file.write('{"question": "x"}\n')
    with pytest.raises(UserError, match=f"{FILE}: line 2: is not an answer; remove the file"):
        KeptAnswers(tmp_path)


def test_a_key_is_of_the_parameters_and_of_all_of_the_request():
    requests = [("likelihood", (1, 2), (3,)), ("likelihood", (1,), (2, 3)), ("writing", (1, 2), (3,))]
    keys = [key_of(parameters, request) for parameters in ("one", "two") for request in requests]
    assert len(set(keys)) == 6 and keys[0] == key_of("one", ("likelihood", [1, 2], [3]))


def test_on_gs(bucket):
    folder = storage.path(str(bucket)) / "measured"
    added(folder, {KEYS[0]: [1]})
    added(folder, {KEYS[1]: [2]})
    kept = KeptAnswers(folder)
    assert kept.found(KEYS[:3]) == [[1], [2], None]
    kept.close()
