"""Engines with a model: each text is that of the full forward pass, whatever is in the cache beside it."""

import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.chain import continued, emitted_by, prompt
from tpullm.engine import cache, forward
from tpullm.engine.cache import CHUNK, Cache, Piece
from tpullm.engine.engine import Engine
from tpullm.engine.generation import decode_batch
from tpullm.engine.guesses import Lookup
from tpullm.engine.request import Request
from tpullm.evaluation.scoring import log_probabilities, next_log_probabilities
from tpullm.model.architecture import Architecture
from tpullm.model.attention.cpu import attend_to_slots
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.recipe.schema import ModelConfig


def made(session, context, **sizes):
    sizes = {"layers": 1, "width": 32, "heads": 4, "kv_heads": 2} | sizes
    config = ModelConfig(context_length=context, windows=(CHUNK + 1,) * sizes["layers"], **sizes)
    architecture = Architecture(config.resolved(session.tokenizer.vocabulary_size))
    with jax.set_mesh(session.mesh):
        init = jax.jit(architecture.init, out_shardings=architecture.shardings(session.mesh))
        params = init(jax.random.key(1))
        params["embedding"] = params["embedding"] * 20
        # What a token adds by itself is small beside what it attends to: otherwise the next token shows no memory.
        for stack in config.stacks:
            out = params[stack]["attention"]["out"]
            out["weight"] = out["weight"] * 200
    return dataclasses.replace(session, architecture=architecture, params=params)


def greedy_by_full_forward(session, ids, tokens):
    """The reference: the whole text through the model for every token, without a cache."""
    new = []
    for _ in range(tokens):
        new.append(int(np.argmax(next_log_probabilities(session, [[*ids, *new]])[0])))
    return new


@pytest.fixture(scope="module")
def small(session):
    """Of few tokens, so that there are few programs; and its engine."""
    one = made(session, 3 * CHUNK)
    engine = Engine(one, 4, reproducible=True)
    engine.compile()
    return one, engine


def test_texts_are_those_of_the_full_forward_and_have_the_same_bits_alone_and_among_others(small):
    one, engine = small
    asked = [Request(prompt(length, length), 4, GREEDY, top=2) for length in (1, 3, CHUNK + 1, 2 * CHUNK + 3)]
    together = emitted_by(engine, asked)
    assert together == [emitted_by(engine, [request])[0] for request in asked]
    found = [[token.id for token in tokens] for tokens in together]
    assert found[2] == greedy_by_full_forward(one, list(asked[2].ids), 4)
    logps_V = next_log_probabilities(one, [list(asked[2].ids)])[0]
    # Float32 sums in another order: logits of about 30 differ by 1e-3 at most.
    np.testing.assert_allclose([value for _, value in together[2][0].top], np.sort(logps_V)[:-3:-1], atol=1e-3)
    expected = log_probabilities(one, [[*asked[2].ids, *found[2]]])[0][-4:]
    np.testing.assert_allclose([token.log_probability for token in together[2]], expected, atol=1e-3)


@pytest.mark.ci
def test_texts_of_a_model_whose_first_layers_have_no_experts_are_those_of_its_full_forward(session, monkeypatch):
    """Also where a prompt is read a layer in a step, beside a text that is written."""
    monkeypatch.setattr(cache, "layers_per_program", lambda layers: 1)
    experts = {"layers": 3, "dense_layers": 1, "experts": 4, "mlp_width": 32, "shared_experts": 1, "balance_rate": 0.1}
    one = made(session, 3 * CHUNK, **experts)
    asked = [Request(prompt(length, length), 4, GREEDY) for length in (3, CHUNK + 1, 2 * CHUNK + 3)]
    found = [[token.id for token in tokens] for tokens in emitted_by(Engine(one, 4), asked)]
    assert found == [greedy_by_full_forward(one, list(request.ids), 4) for request in asked]


@pytest.mark.ci
def test_a_cpu_attends_by_code_of_its_own_in_bfloat16(session, monkeypatch):
    """The likelihoods of the full forward pass, but for the roundings of bfloat16."""
    one, asked_of = dataclasses.replace(made(session, 96, width=64, heads=2), dtype=jnp.dtype("bfloat16")), []
    monkeypatch.setattr(forward, "attend_to_slots", lambda *of: asked_of.append(of) or attend_to_slots(*of))
    engine = Engine(one, 4, reproducible=True)
    asked = [Request(prompt(length, length), 4, GREEDY, top=0) for length in (3, CHUNK + 1, 2 * CHUNK + 3)]
    together = emitted_by(engine, asked)
    assert asked_of and together == [emitted_by(engine, [request])[0] for request in asked]
    for request, tokens in zip(asked, together, strict=True):
        ids = [*request.ids, *(token.id for token in tokens[:-1])]
        wanted = float(next_log_probabilities(one, [ids])[0][tokens[-1].id])
        assert tokens[-1].log_probability == pytest.approx(wanted, abs=0.05)


def test_rows_without_a_text_are_zeros(small):
    one, _ = small
    new_BT3 = np.array([[[5, 3, 0]], [[5, 3, -1]]], np.int32)
    with jax.set_mesh(one.mesh):
        put = lambda array: jax.device_put(array, jax.NamedSharding(one.mesh, jax.P(*[None] * array.ndim)))  # noqa: E731
        arguments = one.architecture, one.params, put(new_BT3), put(np.zeros(2, np.int32))
        text, nothing = np.asarray(forward.embed_new(*arguments, dtype=jnp.float32))
    assert np.abs(text).min() > 0 and not nothing.any()


def test_the_tokens_of_a_prompt_are_told_with_the_log_probabilities_of_one_forward_pass(small):
    one, engine = small
    ids, told = prompt(CHUNK + 1, 11), CHUNK
    for tokens in emitted_by(engine, [Request(ids, 4, GREEDY, top=3, echo=told)] * 2):
        expected, before_V = log_probabilities(one, [list(ids)])[0], next_log_probabilities(one, [list(ids[:1])])[0]
        np.testing.assert_allclose([token.log_probability for token in tokens[:told]], expected, atol=1e-3)
        assert [one for one, _ in tokens[0].top] == np.argsort(-before_V)[:3].tolist()
        np.testing.assert_allclose([value for _, value in tokens[0].top], np.sort(-before_V)[:3] * -1, atol=1e-3)


@pytest.mark.parametrize(("to", "of"), [((0, 1), (1, 0)), ((1, 0), (0, 1)), ((0, 0), (0, 1)), ((1, 0), (2, 0))])
def test_a_copied_row_has_the_keys_of_the_other(session, to, of):
    """To a group of several rows, of one, within one, and from one row to one."""
    cache = Cache(session, [(2, 256), (1, 256), (1, 256)])
    with jax.set_mesh(session.mesh):
        *_, _ = cache.read(of[0], [Piece(of[1], 0, prompt(8), 1)], 1)
        held = jax.tree.map(np.asarray, [cache.used[of[0], number] for number in range(2)])
        cache.copy(to, of, 256)
        found = [cache.used[to[0], number] for number in range(2)]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(held), strict=True):
        np.testing.assert_array_equal(one[to[1]], other[of[1]])
    assert np.abs(jax.tree.leaves(held)[0]).max() > 0


@pytest.mark.ci
def test_what_writes_texts_is_compiled_in_a_thread_and_guesses_change_no_text(session):
    """Of all groups: texts that outgrow theirs, that are copied, told and biased."""
    long = made(session, 640)
    engine, compiled = Engine(long, 2, guesses=Lookup()), []
    engine.compile()
    with pytest.MonkeyPatch.context() as patch:
        real = jax._src.compiler.compile_or_get_cached

        def noted(backend, module, *arguments, **named):
            compiled.append(
                (
                    threading.current_thread() is threading.main_thread(),
                    str(module.operation.attributes["sym_name"]).strip('"'),
                )
            )
            return real(backend, module, *arguments, **named)

        patch.setattr(jax._src.compiler, "compile_or_get_cached", noted)
        beginning = prompt(CHUNK, 9)
        asked = [Request(prompt(3), 3, GREEDY), Request(prompt(550), 3, Sampling(1.0, 5, 0.5, 0.1), top=2)]
        asked += [Request((*beginning, 5), 3, GREEDY, echo=9), Request(prompt(508), 9, GREEDY, bias={5: 1.0})]
        continued(engine, asked)
        continued(engine, [Request((*beginning, 6), 3, GREEDY), Request((*beginning, *prompt(510)), 3, GREEDY)])
        repeated = [Request(prompt(12, 4) * 3, 30, GREEDY), Request(prompt(500, 1), 20, Sampling(0.8, 9), seed=1)]
        for request in repeated:
            continued(engine, [request])
            while engine.programs._works:  # what checks guesses is compiled too
                time.sleep(0.01)
        found = [continued(engine, [request])[0] for request in repeated]
    assert engine.figures()["guesses"]
    here = {name for is_here, name in compiled if is_here}
    assert here <= {"jit__zeros", "jit__row_of", "jit__with_row"}, here
    in_thread = {name for is_here, name in compiled if not is_here}
    assert in_thread >= {"jit_read_layers", "jit_write_layers", "jit_pick", "jit_given_tokens"}
    assert found[0] == decode_batch(long, [list(repeated[0].ids)], 30, stop_ids=[])[0]
    engine.guesses = None
    assert [continued(engine, [request])[0] for request in repeated] == found
