"""Compiled programs are kept: for this kind of machine only, with the same results, and never in the way."""

import io
import os
import shutil
import sys
import warnings

import pytest

from tests.conftest import tpullm
from tests.run.test_resume import assert_same_bits
from tpullm.system.process import environment


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty cache folder; what these tests change in the process is put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(environment.FOLDER, raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return tmp_path / "cache" / "tpullm" / "xla"


def pretrain(run, **variables) -> str:
    """Train in `run` with JAX telling what it does with kept programs; what was printed.

    All are kept, also those that compile in less than the least time: how many these are depends on the machine.
    """
    own = {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    small = ["--pretrain.steps=2", "--pretrain.evaluate_every=2", "--model.layers=1"]
    return tpullm("pretrain", "--run", run, *small, env=os.environ | own | variables).stderr


@pytest.mark.ci
def test_a_program_is_kept_and_gives_the_same_bits_even_from_a_broken_entry(home, tiny_tokens, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for run in (first, second):
        shutil.copytree(tiny_tokens, run)
    said = pretrain(first)
    assert "cache hit for 'jit_step'" not in said
    assert f"programs are kept in {home / environment.machine()}" in said

    entries = {path: path.stat().st_size for path in home.glob("*/*")}
    broken = {path: size for path, size in entries.items() if "jit_step" not in path.name}
    assert any("jit_evaluate" in path.name for path in broken) and len(broken) < len(entries)
    for path, size in broken.items():
        os.truncate(path, size // 2)
    said = pretrain(second)
    assert "cache hit for 'jit_step'" in said and "cache hit for 'jit_evaluate'" not in said
    assert said.count("can't be read and is made again") == 1 and "UserWarning" not in said
    assert_same_bits(first / "pretrain", second / "pretrain")
    again = {path: path.stat().st_size for path in home.glob("*/*")}
    assert again.keys() == entries.keys() and all(again[path] > size // 2 for path, size in broken.items())


def test_another_processor_or_number_of_cores_has_another_folder(monkeypatch):
    machines = {environment.machine()}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(77)), raising=False)
    machines.add(environment.machine())
    monkeypatch.setattr(environment, "_processor_description", lambda: "flags: fpu")
    machines.add(environment.machine())
    assert len(machines) == 3


def test_a_processor_is_known_by_what_it_can_do_and_not_by_its_speed(monkeypatch):
    first = "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: {}\nflags\t\t: fpu {}\n\n"

    def machine(*facts, second="processor\t: 1\nmodel name\t: A\n") -> str:
        file = io.StringIO(first.format(*facts) + second)
        monkeypatch.setattr(environment, "open", lambda path, **_: file, raising=False)
        return environment.machine()

    known = machine(1000, "avx2")
    assert machine(3000, "avx2") == known and machine(1000, "avx2", second="") == known
    assert machine(1000, "avx512") != known


def test_the_folder_is_the_users_alone(home):
    folder = environment.settings()[environment.FOLDER]
    assert folder == str(home / environment.machine())
    assert all(os.stat(path).st_mode & 0o077 == 0 for path in (folder, home, home.parent))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("how", ["group", "others", "owner"])
def test_a_folder_that_others_may_have_written_is_not_used(home, monkeypatch, capsys, level, how):
    """Programs in it are executed. The cache is off with one line, and the command goes on."""
    folder = home / environment.machine()
    folder.mkdir(parents=True, mode=0o700)
    for place in (home, home.parent):
        place.chmod(0o700)
    place = [folder, *folder.parents][level]
    if how == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    else:
        place.chmod(0o770 if how == "group" else 0o702)
    assert environment.settings() == {}
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "compiled programs are not kept there; set XDG_CACHE_HOME to a folder" in told
    monkeypatch.setenv(environment.FOLDER, "elsewhere")
    assert environment.settings() == {} and capsys.readouterr().err == ""


def test_without_a_folder_that_can_be_written_nothing_is_kept(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv(environment.FOLDER, raising=False)
    assert environment.settings() == {}
    assert "not kept" in environment.described()


@pytest.mark.parametrize("action, told", [("reading", "made again"), ("writing", "can't be kept")])
def test_failures_are_told_once_and_leave_no_broken_entry(home, monkeypatch, capsys, action, told):
    for name, value in environment.settings().items():
        monkeypatch.setenv(name, value)
    folder = home / environment.machine()
    for name in ("jit_step-0-cache", "jit_step-1-cache", "jit_other-0-cache"):
        (folder / name).write_bytes(b"half")
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest, **named: print(message, file=sys.stderr))
    environment.maintain()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for name in ("jit_step", "jit_nothing"):
            what = f"Error {action} persistent compilation cache entry for '{name}'"
            warnings.warn(f"{what}: OSError: bad\nluck", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    said = capsys.readouterr().err
    assert said.count(told) == 1 and "bad luck" in said and "something else" in said
    assert [path.name for path in folder.iterdir()] == ["jit_other-0-cache"]


def test_what_was_longest_not_used_is_removed(home, monkeypatch):
    for name, value in environment.settings().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "MOST_BYTES", 200)
    other = home / "another machine"
    other.mkdir()
    for day, path in enumerate([other / "old", home / environment.machine() / "newer", other / "newest"]):
        path.write_bytes(bytes(100))
        os.utime(path, (86400 * day, 0))
    environment.maintain()
    assert sorted(path.name for path in home.glob("*/*")) == ["newer", "newest"]


def test_a_folder_of_the_users_own_is_left_alone(home, monkeypatch, tmp_path):
    monkeypatch.setenv(environment.FOLDER, str(tmp_path))
    monkeypatch.setattr(environment, "MOST_BYTES", 0)
    (tmp_path / "entry").write_bytes(b"1")
    shown = warnings.showwarning
    environment.maintain()
    assert (tmp_path / "entry").exists() and warnings.showwarning is shown
