"""The memory that is free, by files as Linux has them; what was freed goes back to the system, and when."""

import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import jax
import pytest

from tests.conftest import ROOT
from tpullm.system.process import memory
from tpullm.system.process.allocator import ALLOCATOR
from tpullm.system.process.memory import free_bytes

GIB = 1 << 30
INFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n"


@pytest.fixture
def machine(tmp_path):

    def make(**files: str):
        for name, text in ({"proc/meminfo": INFO} | files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


def test_without_cgroups_it_is_what_the_system_has_if_it_says(machine, tmp_path):
    assert free_bytes(tmp_path) is None
    assert free_bytes(machine()) == 8 * GIB


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/slice/own\n", "", "memory.max memory.current inactive_file"),
        ("5:a,memory:/slice/own\n0::/\n", "memory/", "memory.limit_in_bytes memory.usage_in_bytes total_inactive_file"),
    ],
    ids=["second version", "first version"],
)
def test_the_least_that_any_limit_leaves(machine, line, folder, names):
    """A file that can be read again counts as free; a limit of a folder above holds too."""
    most, current, inactive = names.split()

    def limited(path: str, limit: str, used: int) -> dict:
        where = f"sys/fs/cgroup/{folder}{path}"
        stat = f"{inactive} {1 * GIB}\nanon 7\n"
        return {where + most: f"{limit}\n", where + current: f"{used}\n", where + "memory.stat": stat}

    own = {"proc/self/cgroup": line} | limited("slice/own/", str(6 * GIB), 2 * GIB)
    assert free_bytes(machine(**own)) == 5 * GIB
    assert free_bytes(machine(**limited("slice/", str(4 * GIB), 3 * GIB))) == 2 * GIB
    assert free_bytes(machine(**limited("slice/", "max", 3 * GIB))) == 5 * GIB
    assert free_bytes(machine(**limited("slice/own/", str(99 * GIB), 2 * GIB))) == 8 * GIB


def test_a_container_that_sees_its_own_folder_alone(machine):
    files = {"proc/self/cgroup": "0::/outside/of/it\n", "sys/fs/cgroup/memory.max": f"{3 * GIB}"}
    assert free_bytes(machine(**files, **{"sys/fs/cgroup/memory.current": f"{GIB}"})) == 2 * GIB


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


class Held(list):
    """A list that can be in a cycle and be weakly referenced."""


def cycle() -> Held:
    made = Held()
    made.append(made)
    return made


def test_a_server_frees_cycles_each_minute(monkeypatch):
    clock = iter([0, 0, 59, 60, 61, 100])
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(memory, "_last", -float("inf"))
    found = []
    for _ in range(4):
        held = weakref.ref(cycle())
        memory.free_cycles_every(60)
        found.append(held() is None)
    assert found == [True, False, True, False]


def test_jax_tells_of_compilations_by_this_name(given, monkeypatch):
    monkeypatch.setattr(memory, "LONG", 0.0)
    memory.watch.__wrapped__()
    jax.jit(lambda x: x * 3 + 0.7654321)(1.0)
    assert given


@pytest.mark.parametrize("tunables, calls", [(ALLOCATOR, 1), ("glibc.malloc.arena_max=2", 0), (None, 0)])
def test_an_allocator_that_keeps_little_is_left_alone(monkeypatch, tunables, calls):
    trimmed = []
    library = SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    monkeypatch.setenv("GLIBC_TUNABLES", tunables) if tunables else monkeypatch.delenv("GLIBC_TUNABLES", False)
    memory.give_back()
    assert trimmed == [0] * calls


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells it")
def test_pages_between_those_in_use_are_given_back_and_nothing_is_lost():
    own = os.environ | {"GLIBC_TUNABLES": ALLOCATOR, "PYTHONPATH": str(ROOT)}
    freed, held = map(int, subprocess.check_output([sys.executable, "-c", HOLES], env=own).split())
    assert freed > 200 and held == 100  # of 300 MiB: holes end within pages
