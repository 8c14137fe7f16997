"""The engine: the tokens of each text alone, whatever comes and goes beside it."""

import functools
import threading
from collections import Counter
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import wait_until
from tests.engine.chain import CONTEXT, ROWS, Chain, Form, V, alone, continued, emitted_by, finish, prompt, scores
from tpullm.engine import engine as engine_module
from tpullm.engine.cache import CHUNK, FEW
from tpullm.engine.engine import PIECES, Engine
from tpullm.engine.guesses import Lookup
from tpullm.engine.request import Request
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system.errors import UserError


def test_a_text_that_outgrows_its_group_does_not_wait_for_others(long):
    engine, order = Engine(long, ROWS), []
    engine.submit(Request(prompt(300), 120, GREEDY), lambda token: order.append("other"))  # in a step as long as theirs
    engine.submit(Request(prompt(500), 40, GREEDY), lambda token: order.append("long"))
    while order.count("long") < 40:
        engine.step()
    assert order.count("other") < 75  # 8 pieces of its prompt, and 40 tokens


BEGINNING = prompt(2 * CHUNK, 40)
ASKED = [
    Request(prompt(5, 41), 9, GREEDY, client="a"),
    Request((*BEGINNING, 8), 7, Sampling(1.2), seed=3, client="b"),
    Request((*BEGINNING, 9, 9), 4, GREEDY, client="a"),
    Request(prompt(505, 42), 12, Sampling(0.8), seed=1, client="c"),
    Request(prompt(CHUNK, 43), 3, GREEDY, client="b"),
]


@functools.cache
def expected(n):
    return alone(ASKED[n])


@settings(max_examples=6)
@given(st.data())
def test_a_text_does_not_depend_on_what_comes_and_goes(engine, data):
    """Requests at any turn, some of them given up: each has a beginning of its own tokens, all of them if it ends."""
    emitted, numbers, given_up = {}, {}, set()
    for turn in range(data.draw(st.integers(1, 15))):
        for n in data.draw(st.lists(st.integers(0, len(ASKED) - 1), max_size=3)):
            key = (turn, n, len(emitted))
            emitted[key] = []
            numbers[key] = engine.submit(ASKED[n], emitted[key].append)
        if numbers and data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(numbers)))
            engine.cancel(numbers[key])
            given_up.add(key)
        engine.step()
    finish(engine)
    for key, tokens in emitted.items():
        ids = [token.id for token in tokens]
        assert ids == expected(key[1])[: len(ids)]
        assert key in given_up or (len(ids) == len(expected(key[1])) and tokens[-1].ends)
        assert not any(token.ends for token in tokens[:-1])
    figures = engine.figures()
    assert (figures["waiting"], figures["running"], figures["pages_used"]) == (0, 0, 0)


def test_a_step_computes_the_groups_in_use_and_a_long_text_begins_in_the_step_after_its_reading(long, monkeypatch):
    engine, write, turns, emitted = Engine(long, ROWS), Chain.write, [[]], []
    noted = lambda self, step, *more: turns[-1].append(step) or write(self, step, *more)  # noqa: E731
    monkeypatch.setattr(Chain, "write", noted)
    engine.submit(Request(prompt(3), 40, GREEDY), lambda token: None)
    engine.step()
    engine.submit(Request(prompt(520), 4, GREEDY), lambda token: emitted.append(len(turns)))
    turns.append([])
    while engine.step():
        turns.append([])
    alone, both = (FEW, 0, 0, 0), (512, 512, CONTEXT, 0)
    first = emitted[0]
    assert emitted == [first, first + 2, first + 3, first + 4]
    expected = [alone] * (first - 1) + [both] * 3 + [alone] * (39 - 3 - (first - 1))
    assert turns == [[], *([step] for step in expected), []]  # the prompt is read in the first one


def test_the_texts_that_are_left_close_ranks(long, monkeypatch):
    engine, write, steps = Engine(long, ROWS), Chain.write, []
    monkeypatch.setattr(Chain, "write", lambda self, step, *more: steps.append(step) or write(self, step, *more))
    last = Request(prompt(3), 30, GREEDY)
    (*_, found) = continued(engine, [Request(prompt(5), 5, GREEDY), Request(prompt(4), 5, GREEDY), last])
    assert {(FEW, FEW, 0, 0), (FEW, 0, 0, 0)} == set(steps) and steps[-20:] == [(FEW, 0, 0, 0)] * 20
    assert found == alone(last)


def test_a_step_is_on_its_way_before_the_last_one_is_looked_at_unless_it_depends_on_its_tokens(long, monkeypatch):
    done, write, look = [], Chain.write, engine_module.fetched_choice
    monkeypatch.setattr(Chain, "write", lambda *arguments: done.append("write") or write(*arguments))
    monkeypatch.setattr(engine_module, "fetched_choice", lambda *arguments: done.append("look") or look(*arguments))
    ahead = ["look", "write", *["write", "look"] * 3, "look"]  # the first look is at what follows the prompt
    in_turn = ["look", *["write", "look"] * 4]
    engine = Engine(long, ROWS)
    for changes, expected in (({}, ahead), ({"frequency_penalty": 0.5}, in_turn)):
        request = Request(prompt(3), 5, GREEDY, **changes)
        (found,) = continued(engine, [request])
        assert done == expected and found == alone(request)
        done.clear()
    penalized = Request(prompt(5), 4, GREEDY, presence_penalty=0.5)
    both = [Request(prompt(3), 5, GREEDY), penalized]
    assert continued(engine, both) == [alone(request) for request in both]


def test_clients_take_turns(long):
    engine, order = Engine(long, ROWS), []
    for n in range(ROWS + 2):
        engine.submit(Request(prompt(3, n), 2, GREEDY, client="a"), lambda token, n=n: order.append(n))
    engine.submit(Request(prompt(3), 2, GREEDY, client="b"), lambda token: order.append("b"))
    finish(engine)
    assert order.index("b") < order.index(ROWS)


def test_of_several_clients_none_takes_all_rows(long, monkeypatch):
    """And alone it does, also after the others have gone."""
    engine, rows = Engine(long, ROWS), []
    for client, count in (("a", 9), ("b", 1), ("a", 20)):
        for n in range(count):
            engine.submit(Request(prompt(3, n), 9, GREEDY, client=client), lambda token: None)
        engine.step()
        rows.append([text.request.client for text in engine._rows.texts()].count("a"))
        if client == "b":
            finish(engine)
    finish(engine)
    total = len(engine._rows.all)
    assert rows == [total, total, 2] and total == 6  # the second one while it has less than a quarter of five
    for n in range(9):  # of the rows for long texts, the last one too is for who has none
        engine.submit(Request(prompt(520, n), 9, GREEDY, client="a"), lambda token: None)
    engine.step()
    engine.submit(Request(prompt(520), 9, GREEDY, client="b"), lambda token: None)
    engine.step()
    long_rows = [row.text and row.text.request.client for row in engine._rows.all if engine._rows.slots(row) > 520]
    assert sorted(long_rows, key=str) == ["a"] * (len(long_rows) - 1) + ["b"] and len(long_rows) == 2
    finish(engine)
    monkeypatch.setattr(engine_module, "RECENT", 3)
    for client, steps in (("b", 9), ("a", 1)):
        for n in range(20 if client == "a" else 1):
            engine.submit(Request(prompt(3, n), 9, GREEDY, client=client), lambda token: None)
        for _ in range(steps):
            engine.step()
    assert [text.request.client for text in engine._rows.texts()].count("a") == total


@pytest.mark.parametrize("reads_first", [False, True])
def test_answers_to_one_prompt_have_it_read_once(long, monkeypatch, reads_first):
    """Whoever asks. What is echoed is read, and what another program chooses takes whole chunks."""
    pieces, read, sampled = [], Chain.read, Sampling(temperature=1)
    found = lambda cache, of, own, *rest, **more: pieces.extend(own) or read(cache, of, own, *rest, **more)  # noqa: E731
    monkeypatch.setattr(Chain, "read", found)
    engine = Engine(long, 8, reads_first=reads_first)
    alike = [Request(prompt(150), 9, sampled, seed=n, client=f"{n}") for n in range(5)]
    requests = [*alike, Request(prompt(150), 9, GREEDY), Request(prompt(150, 2), 9, sampled)]
    emitted = [
        [token.id for token in own]
        for own in emitted_by(engine, [*requests, Request(prompt(150), 9, GREEDY, echo=149)])
    ]
    assert emitted[:-1] == list(map(alone, requests)) and emitted[-1] == [*prompt(150)[1:], *alone(requests[5])]
    of_chunks = 149 // CHUNK * CHUNK
    assert sum(len(piece.ids) for piece in pieces) == 3 * 150 + (150 - of_chunks)
    assert engine.figures()["reused_tokens"] == 4 * 150 + of_chunks


def test_a_text_ends_by_its_stop_its_length_and_the_context(long, engine):
    first = continued(engine, [Request(prompt(30, 3), 8, GREEDY)])[0]
    emitted = []
    engine.submit(Request(prompt(30, 3), 8, GREEDY, stop_ids=(first[2],)), emitted.append)
    engine.submit(Request(prompt(30, 3), 2, GREEDY), emitted.append)
    engine.submit(Request(prompt(CONTEXT - 3, 3), 8, GREEDY), emitted.append)
    finish(engine)
    assert sorted(token.ends for token in emitted if token.ends) == ["length", "length", "stop"]
    assert len(emitted) == first.index(first[2]) + 1 + 2 + 3


def test_probabilities_are_the_models_own_and_biases_change_the_choice(long, engine):
    ids, emitted = prompt(30, 4), []
    logps = scores(ids) - np.logaddexp.reduce(scores(ids))
    order, only_odd = np.argsort(-logps), np.arange(V) % 2 == 1
    engine.submit(Request(ids, 1, GREEDY, top=3), emitted.append)
    engine.submit(Request(ids, 1, GREEDY, bias={int(order[9]): 1e4}, top=0), emitted.append)
    engine.submit(Request(ids, 3, Sampling(2.0), allowed=Form(lambda new: only_odd & (len(new) < 9))), emitted.append)
    finish(engine)
    plain = next(token for token in emitted if token.top)
    assert [id for id, _ in plain.top] == order[:3].tolist() and plain.id == order[0]
    np.testing.assert_allclose([value for _, value in plain.top], logps[order[:3]], rtol=1e-5)
    biased = next(token for token in emitted if token.id == order[9] and not token.top)
    assert biased.log_probability == pytest.approx(logps[order[9]], rel=1e-5)
    assert sum(token.id % 2 for token in emitted) >= 3


def test_log_probabilities_are_told_to_who_asks(engine):
    """Beside one who asks, a program tells those of all; a text is the same alone and among others."""
    asked = [
        Request(prompt(9, 1), 3, GREEDY, top=0),
        Request(prompt(9, 2), 3, GREEDY),
        Request(prompt(9, 3), 3, GREEDY, top=2),
    ]
    told, not_told, with_others = emitted_by(engine, asked)
    assert all(token.log_probability < 0 and token.top == () for token in told)
    assert all(token.log_probability is None and token.top == () for token in not_told)
    assert all(len(token.top) == 2 for token in with_others) and not_told == emitted_by(engine, asked[1:2])[0]


@pytest.mark.parametrize(("presence", "frequency"), [(60.0, 0.0), (0.0, 4.0), (9.0, -2.0)])
def test_penalties_are_those_of_openais_formula(engine, presence, frequency):
    """Greedy: logits - frequency * count - presence * (count > 0), of the new tokens alone."""
    likely = dict.fromkeys(range(20, 23), 40.0)  # so that some tokens come again
    ids, new = prompt(12, 8), []
    for _ in range(9):
        counts_V, bias_V = np.bincount(new, minlength=V), np.isin(np.arange(V), [*likely]) * 40.0
        new.append(int(np.argmax(scores([*ids, *new]) + bias_V - frequency * counts_V - presence * (counts_V > 0))))
    asked = Request(ids, 9, GREEDY, presence_penalty=presence, frequency_penalty=frequency, bias=likely)
    found, plain = continued(engine, [asked, Request(ids, 9, GREEDY, bias=likely)])
    assert found == new != plain


def test_a_mask_sees_the_tokens_so_far(engine):
    seen, wanted = [], (17, 99, 4)

    def allowed(new):
        seen.append(new)
        mask = np.zeros(V - 2, bool)  # shorter: the rest is not allowed
        mask[wanted[len(new)]] = True
        return mask

    assert continued(engine, [Request(prompt(8), 3, Sampling(1.0), allowed=Form(allowed))]) == [list(wanted)]
    assert seen == [(), (17,), (17, 99)]


def test_nobody_waits_for_a_slow_mask(engine):
    """A text whose mask is not ready is left out of the step, and has the same tokens in the end."""
    odd, asked = np.arange(V) % 2 == 1, Request(prompt(8), 12, Sampling(1.0), seed=4)
    form, found = Form(lambda new: odd, slow=True), ([], [])
    ordinary, expected = (continued(engine, [one]) for one in (asked, replace(asked, allowed=Form(form.of))))
    engine.submit(replace(asked, allowed=form), found[0].append)
    engine.submit(asked, found[1].append)
    for _ in range(20):
        engine.step()
    assert [token.id for token in found[1]] == ordinary[0] and len(found[0]) == 1
    assert {*form.asked} == {(found[0][0].id,)}
    form.ready = True
    finish(engine)
    assert [token.id for token in found[0]] == expected[0]
    assert [*dict.fromkeys(form.asked)] == [tuple(expected[0][:n]) for n in range(1, 12)]


@pytest.mark.parametrize("ids", [(), prompt(CONTEXT), prompt(CONTEXT + 1), (5, 700)])
def test_a_prompt_that_does_not_fit_is_refused(engine, ids):
    with pytest.raises(UserError, match=r"^prompt: "):
        engine.submit(Request(ids, 3, GREEDY), lambda token: None)
    assert not engine.step()


LONG = [Request(prompt(550), 3, Sampling(1.0)), Request(prompt(508), 9, GREEDY, bias={5: 1.0})]


@pytest.mark.parametrize("guesses", [None, Lookup()])
def test_a_start_compiles_few_programs_and_no_other_is_called_before_it_is_compiled(long, guesses):
    engine = Engine(long, ROWS, guesses=guesses)
    engine.compile()
    found = Counter(name for name, *_ in engine.programs.compiled)
    assert found.pop("copy") and found == {"read": 2, "write": 2, "choose": 6}  # a thread compiles the other copies
    beginning = prompt(CHUNK, 9)
    asked = [Request(prompt(3), 3, GREEDY), Request((*beginning, 5), 3, GREEDY), *LONG]
    assert continued(engine, asked)[:3] == list(map(alone, asked[:3]))
    continued(engine, [Request((*beginning, 5), 3, GREEDY, echo=9), Request((*beginning, *prompt(510)), 3, GREEDY)])
    repeated = Request(prompt(12, 4) * 3, 30, GREEDY, bias=dict.fromkeys(range(5, 8), 40.0))
    wait_until(lambda: continued(engine, [repeated]) and bool(engine.figures()["guesses"]) == bool(guesses))
    called = {program for program in engine._cache.programs if program[0] in ("read", "write")}
    assert called <= engine._shapes.programs


def test_texts_whose_programs_are_compiled_do_not_wait_for_others(long, monkeypatch):
    engine, begun, go_on, ended = Engine(long, ROWS), threading.Event(), threading.Event(), []
    engine.compile()
    compile_one = engine.programs._compile_one

    def held_back(key):
        begun.set()
        go_on.wait()
        compile_one(key)

    monkeypatch.setattr(engine.programs, "_compile_one", held_back)
    for name, request in {"long": LONG[0], "short": Request(prompt(3), 90, GREEDY)}.items():
        engine.submit(request, lambda token, name=name: ended.append(name) if token.ends else None)
    while not ended:
        engine.step()
    assert begun.is_set() and ended == ["short"]
    go_on.set()
    finish(engine)
    assert ended == ["short", "long"]


@pytest.fixture
def held_back(long, monkeypatch):
    """An engine that has compiled what most texts need; what else it compiles waits for the event."""
    engine, go_on = Engine(long, ROWS), threading.Event()
    engine.compile()
    wait_until(lambda: not engine.programs._works)
    compile_one = engine.programs._compile_one
    monkeypatch.setattr(engine.programs, "_compile_one", lambda key: go_on.wait() and compile_one(key))
    yield engine, go_on
    go_on.set()


def test_texts_that_wait_for_programs_keep_no_rows_and_no_prefill_slots_from_others(held_back):
    """Not even from those of the same client that come later."""
    (engine, go_on), ended = held_back, []
    told = Request(prompt(4), 3, GREEDY, top=5, client="a")
    for _ in range(ROWS + 2):
        engine.submit(told, lambda token: ended.append("told") if token.ends else None)
    for _ in range(5):
        engine.step()
    for client in ("a", "b"):
        request = Request(prompt(3), 5, GREEDY, client=client)
        engine.submit(request, lambda token, client=client: ended.append(client) if token.ends else None)
    for _ in range(40):
        engine.step()
    assert sorted(ended) == ["a", "b"] and engine.figures()["waiting"] == ROWS + 2
    go_on.set()
    finish(engine)
    assert ended.count("told") == ROWS + 2


def test_until_a_step_of_all_texts_is_compiled_each_text_gets_its_tokens_however_many_need_another_step(held_back):
    (engine, _), count = held_back, Counter()
    engine.programs.compiled |= dict.fromkeys([("write", (512, 512, 0, 0), 1), ("choose", 4, 0), ("read", 1, 512)], 0.0)
    for name, length in (("long", 300), ("long", 301), ("short", 5), ("short", 6), ("in another group", 7)):
        engine.submit(Request(prompt(length), 90, GREEDY), lambda token, name=name: count.update([name]))
    for _ in range(100):
        engine.step()
    assert not engine.programs.have(("write", (512, 512, 640, 0), 1), begin=False)
    assert count["in another group"] > 15 and count["long"] > 60


def test_prompts_of_clients_are_read_in_turn(long):
    engine, order = Engine(long, ROWS), []
    for n in range(ROWS - 1):
        engine.submit(Request(prompt(250, n), 2, GREEDY, client="a"), lambda token: order.append("a"))
    engine.step()
    engine.submit(Request(prompt(60, 9), 2, GREEDY, client="b"), lambda token: order.append("b"))
    finish(engine)
    assert order.index("b") <= 4


def test_a_fault_of_the_compiler_ends_the_engine(long, monkeypatch):
    engine = Engine(long, ROWS)
    engine.compile()
    monkeypatch.setattr(engine.programs, "_compile_one", lambda key: 1 / 0)
    engine.submit(LONG[0], lambda token: None)
    with pytest.raises(ZeroDivisionError):
        finish(engine)


def test_each_program_of_reproducible_texts_computes_all_rows_and_as_many_pieces(long):
    engine = Engine(long, ROWS, guesses=Lookup(), reproducible=True)
    assert engine.guesses is None
    for requests in (ASKED[:1], ASKED):
        assert continued(engine, requests) == list(map(alone, requests))
    programs = engine._cache.programs
    assert all(all(step) and count == 1 for name, step, count in (of for of in programs if of[0] == "write"))
    assert {of[2] for of in programs if of[0] == "read"} == {PIECES[1]}


def test_rows_that_give_other_bits_than_others_are_told_where_a_text_is_to_be_the_same(long, monkeypatch):
    write, said = Chain.write, []

    def other(*arguments):
        logits = np.array(write(*arguments))
        logits[-1] += 1
        return jnp.asarray(logits)

    monkeypatch.setattr(engine_module, "say", said.append)
    Engine(long, ROWS, reproducible=True).compile()
    monkeypatch.setattr(Chain, "write", other)
    Engine(long, ROWS).compile()
    assert not said
    Engine(long, ROWS, reproducible=True).compile()
    assert [line[:23] for line in said] == ["engine: rows give other"]
