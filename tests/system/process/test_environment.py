"""What a process that computes is started with: set once, whole, and never over what the user has set.

Compiled programs are kept: for this kind of machine only, with the same results, and never in the way.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, tpullm
from tests.run.test_resume import assert_same_bits
from tpullm.cli import main
from tpullm.cli.main import VERBS
from tpullm.system.process import allocator, environment
from tpullm.system.process.allocator import ALLOCATOR, STARTED_AGAIN

linux = pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")


@pytest.fixture
def starts(tmp_path):
    """`starts(*arguments, **variables)`: of each Python that ran, in order, its allocator and how it was called."""
    note = "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.orig_argv[1:], sep='|', file=open({!r}, 'a'))\n"
    (tmp_path / "sitecustomize.py").write_text(note.format(str(tmp_path / "notes")))
    (tmp_path / "tpullm").write_text("import sys; from tpullm.__main__ import entry; sys.exit(entry())\n")

    def run(*arguments, **variables):
        without = {key: value for key, value in os.environ.items() if key not in ("GLIBC_TUNABLES", STARTED_AGAIN)}
        env = without | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"} | variables
        done = subprocess.run([sys.executable, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert "usage: tpullm" in done.stdout, done.stderr
        return [tuple(line.split("|")) for line in (tmp_path / "notes").read_text().splitlines()]

    return run


@linux
@pytest.mark.parametrize("command", [["./tpullm"], ["-X", "utf8", "-W", "error", "-m", "tpullm"]])
def test_a_verb_that_computes_is_started_again_once_as_it_was_called(starts, command):
    arguments = [*command, "blank", "今日は 【?】", "--help"]
    called = str(arguments)
    assert starts(*arguments) == [("None", called), (ALLOCATOR, called)]


@linux
@pytest.mark.parametrize(
    "verb, variables", [("tokenize", {}), ("blank", {"GLIBC_TUNABLES": ""}), ("blank", {STARTED_AGAIN: "1"})]
)
def test_a_verb_is_not_started_again(starts, verb, variables):
    """One that computes nothing, that has the user's allocator, or that could not have ours."""
    assert [allocator for allocator, _ in starts("-m", "tpullm", verb, "--help", **variables)] in (["None"], [""])


@pytest.mark.parametrize("chosen, expected", [(None, "cpu"), ("gpu", None)])
def test_variables_are_set_and_a_jax_that_is_imported_is_told_the_platform(monkeypatch, tmp_path, chosen, expected):
    """What the user has chosen stands: in the variable, and in JAX's own setting."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("JAX_PLATFORMS")  # what the test sets goes with it
    monkeypatch.setenv(environment.FOLDER, "")
    monkeypatch.delenv(environment.FOLDER)
    monkeypatch.setattr(environment, "settings", lambda: {environment.FOLDER: str(tmp_path)})
    monkeypatch.setattr(environment, "platforms", lambda: {"JAX_PLATFORMS": "cpu"})
    told = []
    config = SimpleNamespace(jax_platforms=chosen, update=lambda name, value: told.append((name, value)))
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=config))
    environment.prepare()
    assert (os.environ["JAX_PLATFORMS"], os.environ[environment.FOLDER]) == ("cpu", str(tmp_path))
    assert told == ([("jax_platforms", "cpu")] if expected else [])
    monkeypatch.setattr(environment, "platforms", dict)
    environment.prepare()
    assert len(told) == bool(expected), "without a platform of ours JAX is left alone"


def test_the_allocator_is_told(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "gives freed memory back" in allocator.described()
    for value, told in ((ALLOCATOR, "keeps freed memory"), ("glibc.x=1", "GLIBC_TUNABLES=glibc.x=1")):
        monkeypatch.setenv("GLIBC_TUNABLES", value)
        assert told in allocator.described()


@pytest.mark.parametrize(
    ("installed", "variables", "expected"),
    [
        (set(), {}, False),
        ({"libtpu"}, {}, True),
        ({"jax_plugins"}, {}, True),
        ({"libtpu"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"jax_plugins"}, {"a GPU": "0x10de"}, False),
        ({"jax_plugins"}, {"a card": "0x8086"}, True),
    ],
)
def test_no_chip_is_looked_for_where_only_a_compiler_is(monkeypatch, tmp_path, installed, variables, expected):
    for name in ("TPU_WORKER_HOSTNAMES", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices = [tmp_path / name for name in variables]
    for device, maker in zip(devices, variables.values(), strict=True):
        device.write_text(f"{maker}\n")
    # whatever is here
    monkeypatch.setattr(environment.place.Path, "glob", lambda *_: devices)
    monkeypatch.setattr(environment.place.Path, "exists", lambda *_: False)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: name in installed or None)
    assert environment.platforms() == ({"JAX_PLATFORMS": "cpu"} if expected else {})


@pytest.fixture
def without_platform(monkeypatch):
    """The user has chosen no platform."""
    for name in ("JAX_PLATFORMS", "TPU_WORKER_HOSTNAMES", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    if not environment.platforms():
        pytest.skip("no libtpu, or a machine that may have a TPU")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("variables", [{}, {"TPU_WORKER_HOSTNAMES": "a,b"}], ids=["no TPU", "a TPU"])
def test_every_verb_chooses_the_platform_before_jax(without_platform, monkeypatch, verb, variables):
    """All but `launch`, which imports no JAX and hands its variables to other machines; never where a TPU may be."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # not started again
    monkeypatch.setattr(sys, "argv", ["tpullm", verb])
    monkeypatch.setattr(environment, "maintain", lambda: None)
    monkeypatch.setattr(main, "main", lambda: 0)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        others = {key: value for key, value in sys.modules.items() if key != "jax"}
        for name, value in {"modules": others, "stdout": None, "stderr": None}.items():
            patch.setattr(sys, name, value)
        try:
            main.entry()
        finally:
            signal.signal(signal.SIGTERM, before)
    found = os.environ.pop("JAX_PLATFORMS", None)
    assert found == (None if variables or verb == "launch" else "cpu")


def test_importing_the_package_has_no_effect_and_a_terminal_without_japanese_gets_question_marks():
    code = "import os; before = dict(os.environ); import tpullm; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert b"blank runs/quickstart '?????" in subprocess.check_output(
        [sys.executable, "-m", "tpullm", "--help"], env=env
    )


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty cache folder; what these tests change in the process is put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(environment.FOLDER, raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return tmp_path / "cache" / "tpullm" / "xla"


def pretrain(run, **variables) -> str:
    """Train in `run` with JAX telling what it does with kept programs; what was printed."""
    own = {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}
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


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o770, 0o702, None])
def test_a_folder_that_others_may_have_written_is_not_used(home, monkeypatch, capsys, level, mode):
    """Or that is theirs. Programs in it are executed. The cache is off with one line, and the command goes on."""
    folder = home / environment.machine()
    folder.mkdir(parents=True, mode=0o700)
    for place in (home, home.parent):
        place.chmod(0o700)
    place = [folder, *folder.parents][level]
    if mode:
        place.chmod(mode)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert environment.settings() == {}
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "compiled programs are not kept there; set XDG_CACHE_HOME to a folder" in told
    monkeypatch.setenv(environment.FOLDER, "elsewhere")
    assert environment.settings() == {} and capsys.readouterr().err == ""


def test_the_folder_is_the_users_alone_and_without_one_that_can_be_written_nothing_is_kept(home, monkeypatch, tmp_path):
    folder = environment.settings()[environment.FOLDER]
    assert folder == str(home / environment.machine())
    assert all(os.stat(path).st_mode & 0o077 == 0 for path in (folder, home, home.parent))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
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
    monkeypatch.setenv(environment.FOLDER, str(own := home.parents[2]))  # a folder of the user's own is left alone
    (own / "entry").touch()
    monkeypatch.setattr(environment, "MOST_BYTES", 0)
    shown = warnings.showwarning
    environment.maintain()
    assert (own / "entry").exists() and (other / "newest").exists() and warnings.showwarning is shown
