"""What a process that computes is started with: set once, whole, and never over what the user has set."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tpullm.cli import main
from tpullm.cli.main import VERBS
from tpullm.system.process import environment
from tpullm.system.process.environment import ALLOCATOR, STARTED_AGAIN

linux = pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")


@pytest.fixture
def starts(tmp_path):
    """`starts(*arguments, **variables)`: of each Python that ran, in order, its allocator and how it was called."""
    note = "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.orig_argv[1:], sep='|', file=open({!r}, 'a'))\n"
    (tmp_path / "sitecustomize.py").write_text(note.format(str(tmp_path / "notes")))
    (tmp_path / "tpullm").write_text("import sys; from tpullm.cli.main import entry; sys.exit(entry())\n")

    def run(*arguments, **variables):
        without = {key: value for key, value in os.environ.items() if key not in ("GLIBC_TUNABLES", STARTED_AGAIN)}
        done = subprocess.run(
            [sys.executable, *arguments],
            env=without | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert "usage: tpullm" in done.stdout, done.stderr
        return [tuple(line.split("|")) for line in (tmp_path / "notes").read_text().splitlines()]

    return run


@linux
@pytest.mark.parametrize("command", [["tpullm"], ["-X", "utf8", "-W", "error", "-m", "tpullm"]])
def test_a_verb_that_computes_is_started_again_once_as_it_was_called(starts, command):
    arguments = [*command, "blank", "今日は 【?】", "--help"]
    if command == ["tpullm"]:  # the script, where no folder of that name is
        arguments[0] = "./tpullm"
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


@pytest.mark.parametrize(
    "value, told",
    [(None, "gives freed memory back"), (ALLOCATOR, "keeps freed memory"), ("glibc.x=1", "GLIBC_TUNABLES=glibc.x=1")],
)
def test_the_allocator_is_told(monkeypatch, value, told):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if value is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", value)
    assert told in environment.allocator()


@pytest.mark.parametrize(
    ("installed", "variables", "expected"),
    [
        ({"libtpu"}, {}, {"JAX_PLATFORMS": "cpu"}),
        (set(), {}, {}),
        ({"libtpu", "jax_plugins"}, {}, {"JAX_PLATFORMS": "cpu"}),
        ({"jax_plugins"}, {}, {"JAX_PLATFORMS": "cpu"}),
        ({"libtpu"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"jax_plugins"}, {"a GPU": "0x10de"}, {}),
        ({"jax_plugins"}, {"a card": "0x8086"}, {"JAX_PLATFORMS": "cpu"}),
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
    assert environment.platforms() == expected


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
        patch.setattr(sys, "modules", {key: value for key, value in sys.modules.items() if key != "jax"})
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        try:
            main.entry()
        finally:
            signal.signal(signal.SIGTERM, before)
    found = os.environ.pop("JAX_PLATFORMS", None)
    assert found == (None if variables or verb == "launch" else "cpu")


def test_importing_the_package_has_no_effect():
    code = "import os; before = dict(os.environ); import tpullm; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_terminal_without_japanese_gets_question_marks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tpullm", "--help"], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0 and b"blank '?????" in done.stdout
