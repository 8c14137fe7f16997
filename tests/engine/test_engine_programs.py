"""The programs of an engine: which are compiled, and which are used."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.engine.engine_texts import ROWS, continued, prompt
from tpullm.engine import engine_programs, row_sizes
from tpullm.engine.engine import Engine
from tpullm.engine.engine_programs import PIECES, Programs
from tpullm.engine.request import Request
from tpullm.engine.row_sizes import CHUNK, FEW, SIZE
from tpullm.engine.text_memory import TextMemory
from tpullm.recipe.sampling import GREEDY, Sampling


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


def test_where_all_rows_are_computed_the_first_bands_alone_attend_to_all_slots(long, monkeypatch):
    assert Engine(long, 32, longest=FEW + CHUNK, reads_first=True)._memory.sizes == [(32, FEW + CHUNK)]
    monkeypatch.setattr(row_sizes, "BAND", 1000)  # as if the model were larger
    engine = Engine(long, 32, longest=FEW + CHUNK, reads_first=True)
    few, whole = FEW, FEW + CHUNK
    assert engine._memory.sizes == [(8, whole)] * 4
    assert engine._programs.steps == [(few,) * 4, (whole, whole, few, few), (whole,) * 4]
    assert engine._programs.pieces == [PIECES[-1]]  # one program reads
    step_of = engine._programs.step_of
    assert step_of([few, few, few, 0]) == (few,) * 4
    assert step_of([whole, 3, 3, 3]) == step_of([0, whole, 0, 3]) == (whole, whole, few, few)
    assert step_of([3, 3, 3, whole]) == (whole,) * 4
    step_of = Engine(long, 32, longest=512, reads_first=True)._programs.step_of
    assert step_of([300, 3, 3, 3]) == (384, 384, few, few) and step_of([385, 3, 3, 300]) == (512,) * 4


def test_several_long_texts_need_no_step_of_the_longest(long):
    """With a context of 4,352, nine texts of 600 tokens had steps that attend to all slots of all rows."""
    sizes = [(2, 512), (10, 512), (1, 2048), (1, 4352), (7, 2048), (1, 4352)]
    slots = lambda step: sum(rows * seen for (rows, _), seen in zip(sizes, step, strict=True))  # noqa: E731
    step_of = Programs(long, SimpleNamespace(groups=True, sizes=sizes, slots=slots)).step_of
    assert step_of([100, 300, 600, 0, 700, 0]) == (512, 512, 1024, 0, 1024, 0)
    assert step_of([100, 300, 600, 0, 1500, 0]) == (512, 512, 2048, 0, 2048, 0)
    assert step_of([100, 300, 600, 3000, 0, 0]) == (512, 512, 2048, 4352, 0, 0)
    assert step_of([100, 300, 600, 3000, 700, 0]) == (512, 512, 2048, 4352, 2048, 4352)
