import dataclasses
import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tpullm.engine import session as session_module
from tpullm.engine.decode import decode, empty_cache, prefill
from tpullm.evaluation.scoring import next_log_probabilities
from tpullm.model.mesh import named_sharding
from tpullm.model.rows import put
from tpullm.recipe.sampling import Sampling
from tpullm.system.errors import UserError

PROMPTS = [[1, 300, 40, 77], [1, 9, 400, 300, 22, 501, 17, 5, 90], [1]]


def greedy_by_full_forward(session, ids, tokens):
    """The reference: the whole text through the model for every token, without a cache."""
    new = []
    for _ in range(tokens):
        new.append(int(np.argmax(next_log_probabilities(session, [[*ids, *new]])[0])))
    return new


def test_cached_decoding_is_the_full_forward(session):
    """Float32 sums in another order differ by rounding: logits of about 30 to within 1e-3.

    The prompt is read by layers that were taken apart, the tokens after it by those that are stacked.
    """
    rows = [[1, 300, 40, 77, 30, 21], [1, 9, 400, 300, 22, 501, 17, 5]]
    lengths, tokens = np.array([4, 6], np.int32), np.zeros((2, 6), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = rows[row][:length]

    @jax.jit
    def read(params, tokens_BT, lengths_B):
        cache = empty_cache(session.architecture, 2, 12, jnp.float32)
        model = session.architecture.model(params)
        return prefill(model, model.unstacked(), tokens_BT, lengths_B, cache, jnp.float32)

    @jax.jit
    def add(params, tokens_B1, positions_B1, cache):
        model, segments_B1 = session.architecture.model(params), jnp.ones_like(tokens_B1)
        hidden, cache = model.extend(tokens_B1, segments_B1, positions_B1, cache, None, dtype=jnp.float32)
        return model.logits(hidden)[:, 0], cache

    place = partial(put, session.mesh)
    with jax.set_mesh(session.mesh):
        logits, cache = read(
            session.params, place(tokens), jax.device_put(lengths, named_sharding(session.mesh, "batch"))
        )
        steps = [np.asarray(logits)]
        for n in range(2):
            column = np.array([[rows[0][4 + n]], [rows[1][6 + n]]], np.int32)
            logits, cache = add(session.params, place(column), place((lengths + n)[:, None]), cache)
            steps.append(np.asarray(logits))
    for row, length in enumerate(lengths):
        expected = next_log_probabilities(session, [rows[row][: length + n] for n in range(3)])
        found = np.stack([step[row] for step in steps])
        found -= np.logaddexp.reduce(found, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-3)


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
    sampling, seeds = Sampling(40.0, 0, 1.0, 0.0), list(range(9))
    found = decode(session, PROMPTS, 6, sampling, seeds, each=3)
    assert found == decode(session, [ids for ids in PROMPTS for _ in range(3)], 6, sampling, seeds)
    assert len({tuple(ids) for ids in found}) > 3


def test_other_seeds_give_other_texts(session):
    sampling = Sampling(temperature=1.5, min_p=0.0)
    texts = decode(session, [PROMPTS[0]] * 4, tokens=16, sampling=sampling, seeds=[1, 2, 3, 1], stop_ids=[])
    assert texts[0] == texts[3] and len({tuple(text) for text in texts}) == 3


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


def test_a_prompt_longer_than_the_context_is_refused(session):
    with pytest.raises(UserError, match="33 tokens.* holds 32"):
        decode(session, [[1] * 33], 4)


@pytest.mark.ci
def test_a_mesh_samples_the_answers_of_one_device():
    """Rows on several devices, heads on several, and rows that are split in training, which a single token can't be.

    The same of the texts that the engine writes, and of the codes and the likeliest tokens of a model in 4 bits.
    """
    command = [sys.executable, "-m", "tests.engine.sharded_answers"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    for found in json.loads(done.stdout):
        expected = found.pop("{}")
        assert found and len({str(ids) for ids in expected}) > 3
        for shape, answers in found.items():
            assert answers == expected, shape
