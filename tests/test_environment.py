"""What a process that computes is started with: set once, whole, and never over what the user has set."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tpullm import environment, programs
from tpullm.environment import ALLOCATOR, STARTED_AGAIN

linux = pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")


@pytest.fixture
def starts(tmp_path):
    """`starts(*arguments, **variables)`: of each Python that ran, in order, its allocator and how it was called."""
    note = "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.orig_argv[1:], sep='|', file=open({!r}, 'a'))\n"
    (tmp_path / "sitecustomize.py").write_text(note.format(str(tmp_path / "notes")))
    (tmp_path / "tpullm").write_text("import sys; from tpullm.cli import entry; sys.exit(entry())\n")

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
@pytest.mark.parametrize("command", [["-m", "tpullm"], ["tpullm"], ["-X", "utf8", "-W", "error", "-m", "tpullm"]])
def test_a_verb_that_computes_is_started_again_once_as_it_was_called(starts, command):
    arguments = [*command, "blank", "今日は 【?】", "--help"]
    if command == ["tpullm"]:  # the script, where no folder of that name is
        arguments[0] = "./tpullm"
    called = str(arguments)
    assert starts(*arguments) == [("None", called), (ALLOCATOR, called)]


@linux
def test_a_verb_that_computes_nothing_is_not_started_again(starts):
    assert len(starts("-m", "tpullm", "tokenize", "--help")) == 1


@linux
@pytest.mark.parametrize("variables", [{"GLIBC_TUNABLES": ""}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}])
def test_the_users_allocator_stands(starts, variables):
    assert [allocator for allocator, _ in starts("-m", "tpullm", "blank", "--help", **variables)] == [
        variables["GLIBC_TUNABLES"]
    ]


@linux
def test_a_process_that_can_not_have_the_allocator_goes_on_without(starts):
    assert len(starts("-m", "tpullm", "blank", "--help", **{STARTED_AGAIN: "1"})) == 1


def test_the_users_folder_for_programs_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setenv(programs.FOLDER, str(tmp_path))
    monkeypatch.setattr(environment, "platforms", dict)
    environment.prepare()
    assert os.environ[programs.FOLDER] == str(tmp_path)


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
        ({"libtpu", "jax_plugins"}, {}, {}),
        ({"libtpu"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
    ],
)
def test_no_tpu_is_looked_for_where_only_its_compiler_is(monkeypatch, installed, variables, expected):
    for name in ("TPU_WORKER_HOSTNAMES", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment.joining.Path, "glob", lambda *_: ())  # no PCI device, whatever is here
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: name in installed or None)
    assert environment.platforms() == expected


def test_a_terminal_without_japanese_gets_question_marks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tpullm", "--help"], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0 and b"blank '?????" in done.stdout
