"""Which programs are compiled, when, and what is said about it."""

import os
import sys
import threading

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.conftest import wait_until
from tpullm.engine import programs
from tpullm.engine.engine import Engine
from tpullm.engine.programs import Programs
from tpullm.system.process import environment


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(programs.log, "say", lines.append)
    return lines


TOLD = "compiles 2 more programs, about 4 s"


@pytest.mark.parametrize(
    ("seconds", "new", "told"), [([30, 2, 2, 2], 1, TOLD), ([30, 1, 1], 1, ""), ([30, 2, 2, 2], 0, "")]
)
def test_how_long_it_takes_is_told_by_the_second_one_if_it_was_not_kept(said, monkeypatch, seconds, new, told):
    now, left, count = [0.0], list(seconds), [0]

    def compile_one(key):
        now[0] += left.pop(0)
        count[0] += new

    monkeypatch.setattr(programs, "compilations", lambda: count[0])
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


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone weighs threads")
def test_a_thread_that_compiles_has_less_weight_than_one_that_writes():
    weight = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())  # noqa: E731
    own, found = weight(), []
    compiled = Programs(lambda key: found.append(weight()))
    compiled.compile("ab")
    compiled.compile_in_thread()
    wait_until(lambda: compiled.have("c"))
    assert found == [max(own, 5)] * 3 and weight() == own


@pytest.mark.ci
def test_a_second_start_compiles_no_program(session, tmp_path, monkeypatch):
    """Not even a small one. What JAX holds in memory is forgotten, as in another process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before, wanted = [getattr(jax.config, name) for name in names], environment.settings()
    try:
        jax.config.update(names[0], wanted[names[0].upper()])
        jax.config.update(names[1], float(wanted[names[1].upper()]))
        counts = []
        for _ in range(2):
            compilation_cache.reset_cache()
            jax.clear_caches()
            first = programs.compilations()
            Engine(session, rows=2).compile()
            counts.append(programs.compilations() - first)
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert counts[0] > 10 and counts[1] == 0
