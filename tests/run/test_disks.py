"""A disk that is full or can only be read: one line that says where, exit code 2, and nothing is lost.

Mounting a small disk needs root; otherwise these tests are skipped. `tests/training/test_metrics.py` and
`tests/formats` have the same faults without a disk.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, copy_tokens
from tests.run.test_resume import assert_same_bits, metrics
from tpullm.cli.main import main
from tpullm.system.process import environment as compile_cache


class Disk:
    """A small disk, mounted on `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fill(self, left: int) -> None:
        """Leave so many kilobytes."""
        with open(self.folder / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.folder).free - 1024 * left)

    def allow(self, how: str) -> None:
        """`ro`: to be read only, or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{how}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def tpullm(*words, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tpullm", *map(str, words)]
    here = {name: value for name, value in os.environ.items() if name != compile_cache.FOLDER}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=here | environment)


def refusal(*words, **environment) -> str:
    """The one line with which a verb ends, beside what it says while it works."""
    done = tpullm(*words, **environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "tpullm: " in line]
    assert done.stderr.splitlines()[-1] == line
    return line


def no_partials(folder: Path) -> bool:
    return not list(folder.rglob("*partial*")) + list(folder.rglob("*tmp*"))


# In kilobytes: at the copy of the tokenizer, in the first save, in the second.
@pytest.mark.parametrize(
    "left", [pytest.param(left, marks=pytest.mark.ci if left == 60 else pytest.mark.slow) for left in (8, 60, 900)]
)
def test_a_disk_that_is_full_in_a_training(tiny_run, disk, left):
    run = copy_tokens(tiny_run, disk.folder / "tiny")
    disk.fill(left)
    said = refusal("pretrain", "--run", run)
    assert f"no space left on the device ({run}/pretrain/" in said and said.endswith("run the same command again")
    (disk.folder / "ballast").unlink()
    assert main(["pretrain", "--run", str(run)]) == 0
    assert_same_bits(tiny_run / "pretrain", run / "pretrain")
    assert metrics(tiny_run / "pretrain") == metrics(run / "pretrain")
    assert no_partials(run)


def test_a_disk_that_is_full_leaves_nothing_half_written(tiny_run, disk):
    run = copy_tokens(tiny_run, disk.folder / "tiny")
    shutil.rmtree(run / "documents")
    disk.fill(16)
    assert "no space left on the device" in refusal("collect", "--run", run)
    assert no_partials(run) and not (run / "documents" / "manifest.json").exists()


def test_a_disk_that_can_only_be_read(tiny_run, disk):
    run = copy_tokens(tiny_run, disk.folder / "tiny")
    disk.allow("ro")
    assert refusal("collect", "--run", run) == f"tpullm: {run}/.lock: read-only file system; choose another place"


@pytest.mark.slow
def test_verbs_on_a_disk_that_can_only_be_read(tiny_run, tiny_tokens, disk):
    """Every place that a verb writes to; without its cache folder a verb works as ever."""
    run = copy_tokens(tiny_run, disk.folder / "tiny")
    (disk.folder / "cache").mkdir()
    disk.allow("ro")
    for words in (["pretrain", "--run", run], ["collect", "--config", TINY, "--run", disk.folder / "new"]):
        assert "read-only file system; choose another place" in refusal(*words)
    assert "read-only file system" in refusal("export", tiny_run, disk.folder / "model")
    local = f"--pretrain.checkpoint.local={disk.folder}/saves"
    said = refusal("pretrain", "--run", tiny_tokens, local).lower()
    assert f"{disk.folder}/saves/".lower() in said and "can't be written (read-only file system); choose" in said
    done = tpullm("pretrain", "--run", tiny_tokens, XDG_CACHE_HOME=str(disk.folder / "cache"))
    assert done.returncode == 0 and "programs are not kept" in done.stderr, done.stderr
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")
