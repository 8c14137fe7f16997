"""The prompts of an engine's texts: when they are read, where, and what is read once."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.engine.chain import ROWS, Chain, alone, continued, emitted_by, finish, prompt
from tpullm.engine import cache, prefill
from tpullm.engine.cache import CHUNK, FEW, SIZE
from tpullm.engine.engine import Engine
from tpullm.engine.request import Request
from tpullm.model.architecture import Architecture
from tpullm.recipe.sampling import GREEDY
from tpullm.recipe.schema import RopeScaling


@pytest.fixture
def one_layer_a_program(monkeypatch):
    """These models have two layers, which are one program otherwise."""
    monkeypatch.setattr(cache, "layers_per_program", lambda layers: 1)


def test_a_common_beginning_is_read_once(long, engine):
    beginning, before = prompt(3 * CHUNK, 5), engine.figures()["reused_tokens"]
    asked = [Request((*beginning, *prompt(n, n)), 5, GREEDY) for n in (3, 70, 9, 1)]
    again = Request(beginning, 5, GREEDY)  # of which one token at least is read
    found = continued(engine, asked) + continued(engine, [asked[3], again])
    assert found == [alone(request) for request in [*asked, asked[3], again]]
    # The first one reads it for the other three; then nothing but the last chunk is read.
    assert engine.figures()["reused_tokens"] - before == 3 * 3 * CHUNK + 3 * CHUNK + 2 * CHUNK


def test_what_a_model_wrote_is_read_before_it_counts_as_a_beginning(long, engine):
    """Single tokens and chunks are computed by other programs, whose roundings differ."""
    ids = prompt(CHUNK - 4, 6)
    (said,) = continued(engine, [Request(ids, 40, GREEDY)])
    before = engine.figures()["reused_tokens"]
    follows = Request((*ids, *said, 7), 5, GREEDY)
    assert continued(engine, [follows]) == [alone(follows)]
    assert engine.figures()["reused_tokens"] == before


def test_a_text_that_may_become_longer_has_other_frequencies_and_uses_no_keys_again(long):
    scaling = RopeScaling(kind="dynamic", factor=4.0, original_context=32)
    architecture = Architecture(dataclasses.replace(long.architecture.config, rope_scaling=scaling))
    engine = Engine(SimpleNamespace(**vars(long) | {"architecture": architecture}), ROWS)
    for tokens, reused in ((5, 0), (9, 0), (9, CHUNK)):
        continued(engine, [Request(prompt(CHUNK + 8), tokens, GREEDY)])
        assert engine.figures()["reused_tokens"] == reused


def test_a_short_prompt_does_not_wait_until_a_long_one_is_read(long):
    engine, order = Engine(long, ROWS), []
    engine.submit(Request(prompt(3), 60, GREEDY), lambda token: None)  # so little is read in a turn
    engine.step()
    for name, count in (("long", 500), ("short", 5)):
        engine.submit(Request(prompt(count), 2, GREEDY), lambda token, name=name: order.append(name))
    finish(engine)
    assert order == ["short"] * 2 + ["long"] * 2


def test_a_prompt_is_read_some_layers_in_a_step_if_it_is_long_and_others_are_written(long, one_layer_a_program):
    """So the others wait for a part of a piece and a step. Nobody waits if nothing is written."""
    engine, written, turns = Engine(long, ROWS), [], 0
    engine.submit(Request(prompt(3), 60, GREEDY), written.append)
    engine.step()
    first = []
    engine.submit(Request(prompt(520), 2, GREEDY), lambda token: first.append(turns))
    while not first:
        turns += 1
        engine.step()
        assert len(written) == turns
    assert turns == 2 * 9 + 1  # two layers of 9 pieces; the first token is emitted in the next turn
    engine, turns, first = Engine(long, ROWS), 0, []
    engine.submit(Request(prompt(520), 2, GREEDY), lambda token: first.append(turns))
    while not first:
        turns += 1
        engine.step()
    assert turns == 3  # 8 pieces, 1, and the first token


def test_a_text_that_is_given_up_while_a_piece_is_read_disturbs_no_other(long, one_layer_a_program):
    """Another one, whose beginning was read before, gets its slot when this piece has ended, not before."""
    engine, written, again = Engine(long, ROWS), [], Request(prompt(519, 1), 4, GREEDY)
    writes, emitted = Request(prompt(3), 60, GREEDY), []
    before = emitted_by(engine, [again])
    engine.submit(writes, lambda token: written.append(token.id))
    engine.step()
    number = engine.submit(Request(prompt(520), 2, GREEDY, echo=400), emitted.append)
    while engine._prefill._reading is None or engine._prefill._reading.pieces[0][1].start < FEW:
        engine.step()
    engine.cancel(number)
    told = len(emitted)
    after = emitted_by(engine, [again])
    assert before == after and [token.id for token in after[0]] == alone(again)
    assert written == alone(writes) and len(emitted) == told


def test_more_of_a_prompt_is_read_in_a_turn_where_many_texts_are_written(long, monkeypatch):
    monkeypatch.setattr(prefill, "TEXTS", 2)
    reads, read = [], Chain.read

    def noted(self, group, pieces, *arguments, **named):
        reads.append(len(pieces))
        return read(self, group, pieces, *arguments, **named)

    monkeypatch.setattr(Chain, "read", noted)
    for others, expected in ((2, [1, 1, 1]), (3, [2, 1])):  # it counts too
        engine = Engine(long, ROWS)
        for number in range(others):
            engine.submit(Request(prompt(3, number), 30, GREEDY), lambda token: None)
        while len(engine._rows.written()) < others:
            engine.step()
        reads.clear()
        request, emitted = Request(prompt(150), 2, GREEDY), []
        engine.submit(request, lambda token, emitted=emitted: emitted.append(token.id))
        while len(emitted) < 2:
            engine.step()
        assert reads == expected and emitted == alone(request)


def test_what_a_row_held_is_kept_where_another_row_is_free(long):
    """There is one row for long texts in front of the others, so the second one takes the place of the first."""
    engine = Engine(long, ROWS)
    asked = [Request(prompt(520, n), 3, GREEDY) for n in (1, 2, 1)]
    found = [continued(engine, [request])[0] for request in asked]
    assert found == [alone(request) for request in asked]
    assert engine.figures()["reused_tokens"] == 512


def test_a_text_takes_an_empty_row_before_one_that_holds_a_prompt(long):
    engine = Engine(long, ROWS)
    asked = [Request(prompt(CHUNK + 1, n), 3, GREEDY) for n in range(4)] * 2  # there are four rows of this length
    assert [continued(engine, [request])[0] for request in asked] == [alone(request) for request in asked]
    assert engine.figures()["reused_tokens"] == 4 * CHUNK


def test_the_tokens_of_a_prompt_are_told_before_the_new_ones(engine):
    """Whatever rows hold already; and the new tokens are those without."""
    for length in (2, CHUNK + 1, 3 * CHUNK + 7):
        told = min(length - 1, 2 * CHUNK + 3)
        plain = Request(prompt(length, 11), 4, GREEDY)
        for ids in continued(engine, [dataclasses.replace(plain, echo=told)] * 2):
            assert ids == [*plain.ids[-told:], *alone(plain)]


def test_texts_that_are_all_read_first_are_read_together(long, monkeypatch):
    """Several in a turn, the pieces of a long one in some turns; one that begins like another waits and copies it."""
    engine, read, turns = Engine(long, ROWS, reads_first=True), Chain.read, []

    def counted(memory, group, pieces, *arguments, **named):
        turns.append([piece.row for piece in pieces])
        return read(memory, group, pieces, *arguments, **named)

    monkeypatch.setattr(Chain, "read", counted)
    begin = prompt(2 * SIZE, 9)
    lengths = (3 * SIZE + 5, 2 * SIZE, 40, 2 * SIZE + 1)
    asked = [Request(prompt(length, n), 3, GREEDY) for n, length in enumerate(lengths)]
    asked += [Request((*begin, *prompt(9, n)), 3, GREEDY) for n in range(2)]
    assert continued(engine, asked) == [alone(request) for request in asked]
    together = [rows for rows in turns if rows]
    assert together[0] == [0, 0, 0, 0, 1, 1, 2, 3]  # all slots, until eight pieces are full
    assert engine.figures()["reused_tokens"] == 2 * SIZE
