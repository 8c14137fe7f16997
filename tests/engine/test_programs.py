"""Which programs are compiled, when, and what is said about it."""

import threading

import pytest

from tests.conftest import wait_until
from tpullm.engine import programs
from tpullm.engine.programs import Programs


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(programs.log, "say", lines.append)
    return lines


TOLD = "compiles 2 more programs, about 4 s"


@pytest.mark.parametrize(("seconds", "told"), [([30, 2, 2, 2], TOLD), ([30, 1, 1], "")])
def test_how_long_it_takes_is_told_by_the_second_one(said, monkeypatch, seconds, told):
    now, left = [0.0], list(seconds)

    def compile_one(key):
        now[0] += left.pop(0)

    monkeypatch.setattr(programs.time, "monotonic", lambda: now[0])
    compiled = Programs(compile_one)
    compiled.compile("abcd"[: len(seconds)])
    assert list(compiled.compiled.values()) == seconds
    assert [told in line for line in said] == [True] * bool(told)


def test_a_program_is_begun_once_however_often_it_is_asked_for():
    begun, goes_on = [], threading.Event()
    compiled = Programs(lambda key: begun.append(key) or goes_on.wait(30))
    assert compiled.have("a"), "before there is a thread, it is compiled where it is called"
    compiled.compile_in_thread()
    assert not compiled.have("a", begin=False) and not begun
    for _ in range(3):
        assert not compiled.have("a", "b")
    wait_until(lambda: begun == ["a"])
    goes_on.set()
    wait_until(lambda: compiled.have("a", "b"))
    assert begun == ["a", "b"]
    wait_until(lambda: not compiled._works)
    assert not compiled.have("c")
    wait_until(lambda: compiled.have("c"))
