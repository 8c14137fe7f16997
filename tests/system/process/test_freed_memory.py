"""Memory that was freed goes back to the system after compilations and in the first steps, and not later."""

import os
import subprocess
import sys
import types

import jax
import pytest

from tests.conftest import ROOT
from tpullm.system.process import environment, memory

HOLES = """
import numpy as np
from pathlib import Path
from tpullm.system.process import memory

def mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

kept = [np.ones(1 << 20, np.uint8) for _ in range(400)]
kept = kept[::4]  # holes of 3 MiB between what is used
full = mib()
memory.give_back()
print(full - mib(), sum(int(each.sum()) for each in kept) >> 20)
"""


@pytest.fixture
def given(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(1))
    monkeypatch.setattr(memory, "_left", 0)
    return calls


def test_it_is_done_after_a_long_compilation_and_in_three_steps(given):
    memory.settle()
    memory._note_compilation(memory.COMPILED, 0.9, fun_name="short")
    memory._note_compilation("/jax/core/compile/jaxpr_trace_duration", 9.0)
    assert not given
    memory._note_compilation(memory.COMPILED, 1.0, fun_name="long")
    assert len(given) == 1
    for _ in range(5):
        memory.settle()
    assert len(given) == 1 + memory.STEPS


def test_jax_tells_of_compilations_by_this_name(given, monkeypatch):
    monkeypatch.setattr(memory, "LONG", 0.0)
    memory.watch.__wrapped__()
    jax.jit(lambda x: x * 3 + 0.7654321)(1.0)
    assert given


@pytest.mark.parametrize("tunables, calls", [(environment.ALLOCATOR, 1), ("glibc.malloc.arena_max=2", 0), (None, 0)])
def test_an_allocator_that_keeps_little_is_left_alone(monkeypatch, tunables, calls):
    trimmed = []
    library = types.SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(memory, "ctypes", types.SimpleNamespace(CDLL=lambda _: library))
    monkeypatch.setenv("GLIBC_TUNABLES", tunables) if tunables else monkeypatch.delenv("GLIBC_TUNABLES", False)
    memory.give_back()
    assert trimmed == [0] * calls


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells it")
def test_pages_between_those_in_use_are_given_back_and_nothing_is_lost():
    found = subprocess.run(
        [sys.executable, "-c", HOLES],
        env=os.environ | {"GLIBC_TUNABLES": environment.ALLOCATOR, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    freed, held = map(int, found.stdout.split())
    assert freed > 200 and held == 100  # of 300 MiB: holes end within pages
