"""The command line: quick, one verb imported at a time, JSON and nothing else where JSON was asked for."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from tests.conftest import ROOT, TINY, tpullm
from tpullm.cli import main
from tpullm.cli.main import VERBS
from tpullm.recipe import parsing, schema_keys
from tpullm.recipe.schema import Recipe
from tpullm.system import log
from tpullm.system.errors import HostFailed, Interrupted, TryAgain, UserError


def test_help_names_every_verb_and_is_quick():
    """0.5 s is what the README promises; of the processor's time, since the machine may be busy, and the best of 3."""
    seconds = []
    for _ in range(3):
        before = os.times()
        done = tpullm("--help")
        seconds.append(sum(os.times()[2:4]) - sum(before[2:4]))
    assert 0 < min(seconds) < 0.5
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


def test_text_verbs_never_import_jax(tiny_run):
    program = (
        "import sys; from tpullm.cli.main import main\n"
        f"codes = [main([verb, '--run', {str(tiny_run)!r}]) for verb in ('collect', 'tokenize', 'report')]\n"
        "assert 'jax' not in sys.modules; sys.exit(any(codes))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.txt: is broken"), 2, "a.txt: is broken"),
        (TryAgain("away"), 75, "away"),
        (HostFailed("host 1 failed", 7), 7, "host 1 failed"),
        (Interrupted("stopped and saved"), 130, "stopped and saved"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept, and the same command resumes"),
        (MemoryError(), 2, "out of memory; use a smaller batch_size"),
        (ValueError("gs://b/c: All retry attempts failed: CURL error [x]"), 75, "gs://b/c: the storage did not answer"),
    ],
)
def test_every_failure_has_its_exit_code_and_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(main, "_dispatch_verb", Mock(side_effect=error))
    monkeypatch.setattr(log, "_name", "")
    assert main.main(["pretrain"]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"tpullm: {line}") and said.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(main, "_dispatch_verb", lambda argv: [][1])
    with pytest.raises(IndexError):
        main.main(["pretrain"])


def test_a_recipe_comes_back_from_its_yaml(tmp_path):
    one = parsing.load(TINY)
    (tmp_path / "recipe.yaml").write_text(parsing.dump(one), encoding="utf-8")
    assert parsing.load(tmp_path / "recipe.yaml") == one


def test_the_command_line_wins_wherever_the_file_stands():
    for config in (["--config", str(TINY)], [f"--config={TINY}"]):
        for argv in ([*config, "--name", "other"], ["--name", "other", *config], ["--name=other", *config]):
            assert parsing.of_command_line(argv).name == "other"


def test_there_are_at_most_215_keys():
    assert 50 < sum(map(len, {section.keys for section in schema_keys.sections(Recipe)})) <= 215


def test_ctrl_c_while_modules_are_imported_is_no_traceback(monkeypatch):
    from tpullm import __main__
    from tpullm.cli import main

    monkeypatch.setattr(main, "entry", lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert __main__.entry() == 130


def test_a_signal_in_a_callback_of_the_garbage_collector_ends_the_command():
    """Python drops an exception there, and JAX has such a callback."""
    program = (
        "import gc, os, signal, sys, time; from tpullm.cli import main\n"
        "def callback(*_):\n"
        "    gc.callbacks.remove(callback); os.kill(os.getpid(), signal.SIGTERM); [n for n in range(9)]\n"
        "def verb(argv): gc.callbacks.append(callback); gc.collect(); time.sleep(60)\n"
        "main._dispatch_verb = verb; sys.exit(main.entry())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130 and done.stderr.startswith("tpullm: interrupted")
