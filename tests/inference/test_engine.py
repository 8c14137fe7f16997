"""The engine: the tokens of each text alone, whatever comes and goes beside it."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.test_decode import greedy_by_full_forward
from tpullm.errors import UserError
from tpullm.inference import engine as engine_module
from tpullm.inference import engine_programs, text_memory
from tpullm.inference.decode import decode
from tpullm.inference.engine import Engine
from tpullm.inference.engine_programs import PIECES
from tpullm.inference.request import Request
from tpullm.inference.row_memory import CHUNK, FEW, SIZE
from tpullm.inference.sampling_options import GREEDY, Sampling
from tpullm.inference.scoring import log_probabilities, next_log_probabilities
from tpullm.inference.text_memory import TextMemory
from tpullm.recipe.schema import ModelConfig, RopeScaling
from tpullm.training.state import Architecture

ROWS = 6  # three bands of 2, and the same everywhere: each number of rows is a program
CONTEXT = 640  # and a band of two texts with more than 512 tokens
KINDS = {
    "shared keys": {"kv_heads": 2},
    "windows": {"windows": (24, 0), "attention_softcap": 20.0, "sinks": True, "positions": "learned"},
    "experts": {"experts": 4, "experts_per_token": 2, "mlp_width": 32},
}


def made(session, **changes):
    """A session with another model of random parameters, of `CONTEXT` tokens."""
    config = ModelConfig(layers=2, width=32, heads=4, context_length=CONTEXT, **changes)
    architecture = Architecture(config.resolved(session.tokenizer.vocabulary_size))
    with jax.set_mesh(session.mesh):
        params = jax.device_put(architecture.init(jax.random.key(1)), architecture.shardings(session.mesh))
        params["embedding"] = params["embedding"] * 20
        # What a token adds by itself is small beside what it attends to: otherwise the next token shows no memory.
        out = params["layers"]["attention"]["out"]
        out["weight"] = out["weight"] * 200
    return dataclasses.replace(session, architecture=architecture, params=params)


@pytest.fixture(autouse=True, scope="module")
def read_in_parts():
    """What attends to more than `FEW` slots is read one layer in a turn, as longer texts of larger models are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "MOST_SEEN", FEW)
        yield


@pytest.fixture(scope="module")
def long(session):
    return made(session, **KINDS["shared keys"])


@pytest.fixture(scope="module")
def engine(long):
    """One for several tests: what it did before must not matter."""
    return Engine(long, ROWS)


def continued(engine: Engine, requests) -> list[list[int]]:
    """The new tokens of each request, all of them asked for at once."""
    new = [[] for _ in requests]
    for request, ids in zip(requests, new, strict=True):
        engine.submit(request, lambda token, ids=ids: ids.append(token.id))
    while engine.step():
        pass
    return new


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(4, 600, length).tolist())


def alone(one, request: Request) -> list[int]:
    """What the request gets of an engine that has never done anything."""
    return continued(Engine(one, ROWS), [request])[0]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (n > 0)) for n, kind in enumerate(KINDS)]
)
def test_a_text_is_that_of_the_full_forward_and_of_the_decoder_of_batches(session, long, kind):
    one = long if kind == "shared keys" else made(session, **KINDS[kind])
    asked = [prompt(length, length) for length in (1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7)]
    found = continued(Engine(one, ROWS), [Request(ids, 6, GREEDY) for ids in asked])
    assert found == decode(one, [list(ids) for ids in asked], 6, stop_ids=[])
    assert found[4][:2] == greedy_by_full_forward(one, list(asked[4]), 2)


def test_a_text_that_outgrows_its_band_moves_on_and_is_the_same(long, engine):
    """In a band of other sizes it would stand in one row to its end."""
    ids = prompt(500, 1)
    found = continued(engine, [Request(ids, 30, GREEDY), *(Request(prompt(9, n), 40, GREEDY) for n in range(5))])
    assert found[0] == decode(long, [list(ids)], 30, stop_ids=[])[0]
    assert engine.figures()["pages"] == 4 * 16 + 2 * 20 and engine.figures()["pages_used"] == 0


def test_what_is_sampled_is_what_the_decoder_of_batches_samples(long, engine):
    rules = [Sampling(1.5, 0, 1.0, 0.0), Sampling(0.9, 5, 0.9, 0.01), GREEDY, Sampling(2.0, 0, 0.7, 0.0)]
    asked = [Request(prompt(20, n), 12, sampling, seed=2**32 - 1 - n) for n, sampling in enumerate(rules)]
    found = continued(engine, asked)
    for request, ids in zip(asked, found, strict=True):
        assert ids == decode(long, [list(request.ids)], 12, request.sampling, [request.seed], stop_ids=[])[0]
    assert len(set(map(tuple, found))) == 4


def test_a_common_beginning_is_read_once(long, engine):
    beginning, before = prompt(3 * CHUNK, 5), engine.figures()["reused_tokens"]
    asked = [Request((*beginning, *prompt(n, n)), 5, GREEDY) for n in (3, 70, 9, 1)]
    again = Request(beginning, 5, GREEDY)  # of which one token at least is read
    found = continued(engine, asked) + continued(engine, [asked[3], again])
    assert found == [alone(long, request) for request in [*asked, asked[3], again]]
    # The first one reads it for the other three; then nothing but the last chunk is read.
    assert engine.figures()["reused_tokens"] - before == 3 * 3 * CHUNK + 3 * CHUNK + 2 * CHUNK


def test_what_a_model_wrote_is_read_before_it_counts_as_a_beginning(long, engine):
    """Single tokens and chunks are computed by other programs, whose roundings differ."""
    ids = prompt(CHUNK - 4, 6)
    (said,) = continued(engine, [Request(ids, 40, GREEDY)])
    before = engine.figures()["reused_tokens"]
    follows = Request((*ids, *said, 7), 5, GREEDY)
    assert continued(engine, [follows]) == [alone(long, follows)]
    assert engine.figures()["reused_tokens"] == before


@settings(max_examples=12)
@given(st.data())
def test_a_text_does_not_depend_on_what_comes_and_goes(engine, some, data):
    """Requests at any turn, some of them given up: each has a beginning of its own tokens, all of them if it ends."""
    asked, expected = some
    heard, numbers, given_up = {}, {}, set()
    for turn in range(data.draw(st.integers(1, 25))):
        for n in data.draw(st.lists(st.integers(0, len(asked) - 1), max_size=3)):
            key = (turn, n, len(heard))
            heard[key] = []
            numbers[key] = engine.submit(asked[n], heard[key].append)
        if numbers and data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(numbers)))
            engine.cancel(numbers[key])
            given_up.add(key)
        engine.step()
    while engine.step():
        pass
    for key, tokens in heard.items():
        ids = [token.id for token in tokens]
        assert ids == expected[key[1]][: len(ids)]
        assert key in given_up or (len(ids) == len(expected[key[1]]) and tokens[-1].ends)
        assert not any(token.ends for token in tokens[:-1])
    figures = engine.figures()
    assert (figures["waiting"], figures["running"], figures["pages_used"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def some(long):
    shared = prompt(2 * CHUNK, 40)
    asked = [
        Request(prompt(5, 41), 9, GREEDY, client="a"),
        Request((*shared, 8), 7, Sampling(1.2), seed=3, client="b"),
        Request((*shared, 9, 9), 4, GREEDY, client="a"),
        Request(prompt(505, 42), 12, Sampling(0.8, top_k=9), seed=1, client="c"),
        Request(prompt(CHUNK, 43), 3, GREEDY, client="b"),
    ]
    return asked, [alone(long, request) for request in asked]


def test_the_memory_is_what_the_rows_take(long):
    engine = Engine(long, ROWS)
    continued(engine, [Request(prompt(3), 2, GREEDY), Request(prompt(520), 2, GREEDY)])
    memory = engine._memory
    blocks = memory.blocks()
    assert {(0, 0), (memory.desks[0], 0)} <= set(blocks)
    assert (len(memory.sizes) - 1, 0) not in blocks  # nobody needed it
    taken = sum(array.nbytes for array in jax.tree.leaves(blocks))
    assert taken < engine.memory_bytes()
    with jax.set_mesh(long.mesh):
        for band in [*range(len(memory.sizes)), *memory.desks]:
            memory.copy((band, 0), (band, 0), CONTEXT)
    assert sum(array.nbytes for array in jax.tree.leaves(memory.blocks())) == engine.memory_bytes()


def test_a_short_prompt_does_not_wait_until_a_long_one_is_read(long):
    engine, order = Engine(long, ROWS), []
    engine.submit(Request(prompt(3), 60, GREEDY), lambda token: None)  # so little is read in a turn
    engine.step()
    for name, count in (("long", 500), ("short", 5)):
        engine.submit(Request(prompt(count), 2, GREEDY), lambda token, name=name: order.append(name))
    while engine.step():
        pass
    assert order == ["short"] * 2 + ["long"] * 2


def test_a_prompt_is_read_some_layers_in_a_turn_if_it_is_long_and_others_are_written(long):
    """So the others wait for a part of a piece and a step. Nobody waits if nothing is written."""
    engine, written, turns = Engine(long, ROWS), [], 0
    engine.submit(Request(prompt(3), 60, GREEDY), written.append)
    engine.step()
    first = []
    engine.submit(Request(prompt(520), 2, GREEDY), lambda token: first.append(turns))
    while not first:
        turns += 1
        engine.step()
        assert len(written) == 2 + turns
    assert turns == FEW // SIZE + 2 * (9 - FEW // SIZE)  # of 9 pieces
    engine, turns, first = Engine(long, ROWS), 0, []
    engine.submit(Request(prompt(520), 2, GREEDY), lambda token: first.append(turns))
    while not first:
        turns += 1
        engine.step()
    assert turns == 2  # 8 pieces and 1


def test_a_text_that_is_given_up_while_a_piece_is_read_disturbs_no_other(long):
    """Another one, whose beginning was read before, gets its seat when this piece has ended, not before."""
    engine, written, again = Engine(long, ROWS), [], Request(prompt(519, 1), 4, GREEDY)
    before, writes, heard, after = [], Request(prompt(3), 60, GREEDY), [], []
    engine.submit(again, before.append)
    while engine.step():
        pass
    engine.submit(writes, lambda token: written.append(token.id))
    engine.step()
    number = engine.submit(Request(prompt(520), 2, GREEDY, told=400), heard.append)
    while engine._reading is None or engine._reading.pieces[0][1].start < FEW:
        engine.step()
    engine.cancel(number)
    told = len(heard)
    engine.submit(again, after.append)
    while engine.step():
        pass
    assert before == after and [token.id for token in after] == alone(long, again)
    assert written == alone(long, writes) and len(heard) == told


def test_a_step_computes_the_bands_in_use_and_a_long_text_begins_in_the_turn_after_its_reading(long, monkeypatch):
    engine, write, turns, heard = Engine(long, ROWS), TextMemory.write, [[]], []
    noted = lambda self, seen, tokens, count=1: turns[-1].append(seen) or write(self, seen, tokens, count)  # noqa: E731
    monkeypatch.setattr(TextMemory, "write", noted)
    engine.submit(Request(prompt(3), 40, GREEDY), lambda token: None)
    engine.step()
    engine.submit(Request(prompt(520), 4, GREEDY), lambda token: heard.append(len(turns)))
    turns.append([])
    while engine.step():
        turns.append([])
    alone, both = (FEW, 0, 0, 0), (512, 512, CONTEXT, 0)
    first = heard[0]
    assert heard == [first, first + 1, first + 2, first + 3]
    assert [steps for steps in turns if steps] == [[alone]] * first + [[both]] * 3 + [[alone]] * (39 - first - 3)


def test_what_a_row_held_is_kept_where_another_row_is_free(long):
    """There is one row for long texts in front of the others, so the second one takes the place of the first."""
    engine = Engine(long, ROWS)
    asked = [Request(prompt(520, n), 3, GREEDY) for n in (1, 2, 1)]
    found = [continued(engine, [request])[0] for request in asked]
    assert found == [alone(long, request) for request in asked]
    assert engine.figures()["reused_tokens"] == 512


def test_clients_take_turns(long):
    engine, order = Engine(long, ROWS), []
    for n in range(ROWS + 2):
        engine.submit(Request(prompt(3, n), 2, GREEDY, client="a"), lambda token, n=n: order.append(n))
    engine.submit(Request(prompt(3), 2, GREEDY, client="b"), lambda token: order.append("b"))
    while engine.step():
        pass
    assert order.index("b") < order.index(ROWS)


def test_a_text_ends_by_its_stop_its_length_and_the_context(long, engine):
    first = continued(engine, [Request(prompt(30, 3), 8, GREEDY)])[0]
    heard = []
    engine.submit(Request(prompt(30, 3), 8, GREEDY, stop_ids=(first[2],)), heard.append)
    engine.submit(Request(prompt(30, 3), 2, GREEDY), heard.append)
    engine.submit(Request(prompt(CONTEXT - 3, 3), 8, GREEDY), heard.append)
    while engine.step():
        pass
    assert sorted(token.ends for token in heard if token.ends) == ["length", "length", "stop"]
    assert len(heard) == first.index(first[2]) + 1 + 2 + 3


def test_probabilities_are_the_models_own_and_biases_change_the_choice(long, engine):
    ids, heard = prompt(30, 4), []
    logps = next_log_probabilities(long, [list(ids)])[0]
    order = np.argsort(-logps)
    only_odd = np.arange(len(logps)) % 2 == 1
    engine.submit(Request(ids, 1, GREEDY, top=3), heard.append)
    engine.submit(Request(ids, 1, GREEDY, bias={int(order[9]): 1e4}), heard.append)
    engine.submit(Request(ids, 3, Sampling(2.0), allowed=lambda new: only_odd & (len(new) < 9)), heard.append)
    while engine.step():
        pass
    plain = next(token for token in heard if token.top)
    assert [id for id, _ in plain.top] == order[:3].tolist() and plain.id == order[0]
    # Float32 sums in another order: logits of about 30 differ by 1e-3 at most.
    np.testing.assert_allclose([value for _, value in plain.top], logps[order[:3]], atol=1e-3)
    biased = next(token for token in heard if token.id == order[9] and not token.top)
    assert biased.log_probability == pytest.approx(logps[order[9]], abs=1e-3)
    assert sum(token.id % 2 for token in heard) >= 3


@pytest.mark.parametrize(("presence", "frequency"), [(30.0, 0.0), (0.0, 4.0), (9.0, -2.0)])
def test_penalties_are_those_of_openais_formula(long, engine, presence, frequency):
    """Greedy: logits - frequency * count - presence * (count > 0), of the new tokens alone."""
    ids, new = prompt(12, 8), []
    for _ in range(9):
        logits_V = next_log_probabilities(long, [[*ids, *new]])[0]
        counts_V = np.bincount(new, minlength=len(logits_V))
        new.append(int(np.argmax(logits_V - frequency * counts_V - presence * (counts_V > 0))))
    asked = Request(ids, 9, GREEDY, presence_penalty=presence, frequency_penalty=frequency)
    found, plain = continued(engine, [asked, Request(ids, 9, GREEDY)])
    assert found == new != plain


@pytest.mark.parametrize("length", [2, CHUNK + 1, 3 * CHUNK + 7])
def test_the_tokens_of_a_prompt_are_told_with_their_log_probabilities(long, engine, length):
    """Those of one forward pass, whatever rows hold already; and the new tokens are those without."""
    ids, told = prompt(length, 11), min(length - 1, 2 * CHUNK + 3)
    plain = Request(ids, 4, GREEDY, top=3)
    heard = [[], [], []]
    for request, tokens in zip((plain, *[dataclasses.replace(plain, told=told)] * 2), heard, strict=True):
        engine.submit(request, tokens.append)
    while engine.step():
        pass
    before_V = next_log_probabilities(long, [list(ids[: length - told])])[0]
    expected = log_probabilities(long, [list(ids)])[0][-told:]
    for tokens in heard[1:]:
        assert [token.id for token in tokens] == [*ids[-told:], *(token.id for token in heard[0])]
        # Float32 sums in another order: logits of about 30 differ by 1e-3 at most.
        np.testing.assert_allclose([token.log_probability for token in tokens[:told]], expected, atol=1e-3)
        assert [one for one, _ in tokens[0].top] == np.argsort(-before_V)[:3].tolist()
        np.testing.assert_allclose([value for _, value in tokens[0].top], np.sort(-before_V)[:3] * -1, atol=1e-3)


def test_a_mask_sees_the_tokens_so_far(long, engine):
    seen, wanted = [], (17, 99, 4)

    def allowed(new):
        seen.append(new)
        mask = np.zeros(long.architecture.config.vocabulary_size - 2, bool)  # shorter: the rest is not allowed
        mask[wanted[len(new)]] = True
        return mask

    assert continued(engine, [Request(prompt(8), 3, Sampling(1.0), allowed=allowed)]) == [list(wanted)]
    assert seen == [(), (17,), (17, 99)]


def test_one_that_waits_and_one_that_runs_can_be_cancelled(long):
    engine, heard = Engine(long, ROWS), []
    numbers = [engine.submit(Request(prompt(4, n), 50, GREEDY), heard.append) for n in range(ROWS + 1)]
    engine.step()
    assert engine.figures()["waiting"] == 1
    thread = threading.Thread(target=lambda: [engine.cancel(number) for number in [*numbers, 999]])
    thread.start()
    thread.join()
    before = len(heard)
    assert not engine.step() and len(heard) == before
    assert engine.figures()["waiting"] == engine.figures()["running"] == 0


def test_all_prompts_are_read_first_if_so_wanted(long):
    engine = Engine(long, ROWS, reads_first=True)
    asked = [Request(prompt(CHUNK * n + 5, n), 4, GREEDY) for n in range(ROWS)]
    heard, turns = [], []
    for n, request in enumerate(asked):
        engine.submit(request, lambda token, n=n: heard.append(n))
    while engine.step():
        turns.append(len(heard))
    assert max(turn for turn in turns if turn <= len(asked)) == len(asked)
    assert sorted(heard[: len(asked)]) == list(range(len(asked)))


def test_texts_that_are_all_read_first_are_read_together(long, monkeypatch):
    """Several in a turn, the pieces of a long one in some turns; one that begins like another waits and copies it."""
    engine, read, turns = Engine(long, ROWS, reads_first=True), TextMemory.read, []

    def counted(memory, band, pieces, *arguments, **named):
        turns.append([piece.row for piece in pieces])
        return read(memory, band, pieces, *arguments, **named)

    monkeypatch.setattr(TextMemory, "read", counted)
    begin = prompt(2 * SIZE, 9)
    lengths = (3 * SIZE + 5, 2 * SIZE, 40, 2 * SIZE + 1)
    asked = [Request(prompt(length, n), 3, GREEDY) for n, length in enumerate(lengths)]
    asked += [Request((*begin, *prompt(9, n)), 3, GREEDY) for n in range(2)]
    assert continued(engine, asked) == [alone(long, request) for request in asked]
    together = [rows for rows in turns if rows]
    assert together[0] == [0, 0, 0, 0, 1, 1, 2, 3]  # all seats, until eight pieces are full
    assert engine.figures()["reused_tokens"] == 2 * SIZE


@pytest.mark.slow  # the programs of another model
def test_frequencies_that_depend_on_the_length_are_those_of_the_longest_it_may_become(session):
    """A short text beside a long one has the frequencies of a short one, and no keys of another kind are used again."""
    scaling = RopeScaling(kind="dynamic", factor=4.0, original_context=32)
    one = made(session, rope_scaling=scaling)
    engine = Engine(one, ROWS)
    long_request, short = Request(prompt(200, 1), 6, GREEDY), Request(prompt(20, 2), 6, GREEDY)
    together = continued(engine, [long_request, short])
    assert together[1] == decode(one, [list(short.ids)], 6, stop_ids=[])[0]
    assert together == [alone(one, request) for request in (long_request, short)]
    other = dataclasses.replace(long_request, tokens=40)
    assert continued(engine, [other]) == [alone(one, other)]
    assert engine.figures()["reused_tokens"] == 0


def test_everything_is_compiled_before_the_first_text(long):
    engine = Engine(long, ROWS)
    engine.compile()
    with jax.log_compiles(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax._src.compiler, "compile_or_get_cached", lambda *_, **__: pytest.fail("compiled"))
        beginning = prompt(CHUNK, 9)
        asked = [Request(prompt(3), 3, GREEDY), Request(prompt(550), 3, Sampling(1.0, 5, 0.5, 0.1), top=2)]
        asked += [Request((*beginning, 5), 3, GREEDY, told=9), Request(prompt(508), 9, GREEDY, bias={5: 1.0})]
        continued(engine, asked)
        continued(engine, [Request((*beginning, 6), 3, GREEDY), Request((*beginning, *prompt(510)), 3, GREEDY)])


def test_ways_to_read_that_give_other_bits_are_not_used(long, monkeypatch):
    engine, read = Engine(long, ROWS), TextMemory.read

    def other(self, band, pieces, count, size, end=1):
        *before, (logits_CV, hidden_CTD) = read(self, band, pieces, count, size, end)
        yield from (*before, (logits_CV + (count == 2), hidden_CTD))

    monkeypatch.setattr(TextMemory, "read", other)
    engine.compile()
    assert 2 not in engine._programs.pieces and engine._programs.pieces[-1] == PIECES[-1]


def test_rows_that_give_other_bits_than_others_are_told(long, monkeypatch):
    engine, write, said = Engine(long, ROWS), TextMemory.write, []

    def other(*arguments):
        logits = write(*arguments)
        last = np.arange(len(logits))[:, None] == len(logits) - 1
        return jax.device_put(np.asarray(logits) + last, logits.sharding)

    monkeypatch.setattr(TextMemory, "write", other)
    monkeypatch.setattr(engine_programs, "say", said.append)
    engine.compile()
    assert [line[:23] for line in said] == ["engine: rows give other"]
    monkeypatch.setattr(TextMemory, "write", write)
    with jax.set_mesh(long.mesh):
        assert engine._programs._rows_are_alike(2 * SIZE)


@pytest.mark.parametrize("ids", [(), prompt(CONTEXT), prompt(CONTEXT + 1), (5, 700)])
def test_a_prompt_that_does_not_fit_is_refused(engine, ids):
    with pytest.raises(UserError, match=r"^prompt: "):
        engine.submit(Request(ids, 3, GREEDY), lambda token: None)
    assert not engine.step()


def test_where_all_rows_are_computed_the_first_bands_alone_attend_to_all_slots(long, monkeypatch):
    assert Engine(long, 32, longest=FEW + CHUNK, reads_first=True)._memory.sizes == [(32, FEW + CHUNK)]
    monkeypatch.setattr(text_memory, "BAND", 1000)  # as if the model were larger
    engine = Engine(long, 32, longest=FEW + CHUNK, reads_first=True)
    few, whole = FEW, FEW + CHUNK
    assert engine._memory.sizes == [(8, whole)] * 4
    assert engine._programs.steps == [(few,) * 4, (whole, whole, few, few), (whole,) * 4]
    assert engine._programs.pieces == [PIECES[-1]]  # one program reads
    step_of = engine._programs.step_of
    assert step_of([few, few, few, 0]) == (few,) * 4
    assert step_of([whole, 3, 3, 3]) == step_of([0, whole, 0, 3]) == (whole, whole, few, few)
    assert step_of([3, 3, 3, whole]) == (whole,) * 4
