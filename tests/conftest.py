"""What several tests share: real text where it is there, the command line, and one tiny run with all five steps."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket import Emulator, emulator
from tpullm import programs, storage

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"


def pytest_configure(config):
    """A cache folder of the session: what it compiles is shared, and the user's folder is neither read nor filled.

    Set before a test module imports JAX, which reads it then.
    """
    folder = tempfile.TemporaryDirectory(prefix="tpullm-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_CACHE_HOME"] = folder.name
    os.environ.update(programs.settings())


@pytest.fixture(scope="session")
def real_text() -> Path:
    """The folder of real text for tests (`TPULLM_TEST_DATA`, or `../shared/data`); the test is skipped without it."""
    folder = Path(os.environ.get("TPULLM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real text in {folder}")
    return folder


def tpullm(*arguments: str | Path, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, as a user does."""
    command = [sys.executable, "-m", "tpullm", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A finished run of `tests/tiny.yaml`, made by the real entry point once in a test session. Read only."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    tpullm("run", "--config", TINY, "--run", run)
    return run


@pytest.fixture
def tiny_tokens(tiny_run, tmp_path) -> Path:
    """A run of `tests/tiny.yaml` that is made up to its tokens, to train in."""
    run = tmp_path / "tiny"
    run.mkdir()
    shutil.copy(tiny_run / "recipe.yaml", run)
    for stage in ("documents", "tokenizer", "tokens"):
        shutil.copytree(tiny_run / stage, run / stage)
    return run


@pytest.fixture(scope="session")
def _storage_server() -> Iterator[Emulator]:
    with emulator() as server:
        yield server


@pytest.fixture
def storage_server(_storage_server) -> Iterator[Emulator]:
    """A server of `gs://` that may be killed and started again."""
    yield _storage_server
    if not _storage_server.is_running():
        _storage_server.start()


@pytest.fixture
def bucket(storage_server) -> Path:
    """A bucket of its own: this process, and those that it starts, find it as `gs://...`."""
    return storage.path(storage_server.make(f"test-{uuid.uuid4().hex[:12]}"))
