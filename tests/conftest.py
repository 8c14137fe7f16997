"""What several tests share: real text where it is there, the command line, and one tiny run with all five steps."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.bucket import Emulator, emulator
from tpullm.report.watching import SWITCH
from tpullm.system import language, storage
from tpullm.system.process import environment
from tpullm.system.process.confinement import interpreter_rules
from tpullm.system.process.isolated import NOT_ISOLATED

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"


# How long an example takes says how busy the machine is, and nothing about the program.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# The variable with the folder of a test session: its compiled programs, its tiny run. All workers have the same, and
# `.ci/run` gives both of its sessions one folder.
SESSION = "TPULLM_TEST_SESSION"

# LLVM does not optimize: of the processor time of tests/model and tests/training 40 % went into making small programs
# faster. XLA's own passes (fusion, layouts, what a mesh exchanges) run as ever. Measured on two cores, JAX 0.12.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"

BYTES_OF_A_WORKER = 3 << 30  # seen: 1.8 GiB of its own with the TPU compiler; 1.3 GiB of a `tpullm pretrain` beside

# The files that take longest, the longest first: with several workers, no worker begins one of them at the end. While
# one worker makes the tiny run for `test_docs.py`, the next files need none: another worker does not wait for it.
BEGUN_FIRST = (
    "cli/test_finetune.py",
    "training/test_step.py",
    "model/attention/test_attention.py",
    "test_notebook.py",
    "test_docs.py",
    "system/cluster/test_hosts.py",
    "cli/test_import_export.py",
    "training/test_sharded.py",
    "training/test_branch.py",
    "training/test_resume.py",
    "training/test_loop.py",
    "launch/test_supervisor.py",
    "system/process/test_environment.py",
    "run/test_run.py",
    "system/storage/test_gcs.py",
    "planning/test_proof.py",
)


def pytest_configure(config):
    """A folder of the session: what it compiles is shared, and the user's cache folder is neither read nor filled.

    Set before a test module imports JAX, which reads it then. Workers of pytest-xdist inherit it.
    """
    if SESSION not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="tpullm-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ[SESSION] = folder.name
    # Without byte code each worker would compile the tests again, 10 s, and each of some hundred processes the package.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["XDG_CACHE_HOME"] = os.environ[SESSION]
    try:
        os.close(interpreter_rules())
    except OSError:  # no Landlock: what else holds programs is tested, and `test_code_tests.py` skips this
        os.environ[NOT_ISOLATED] = "1"
    os.environ.update(environment.settings())
    os.environ["LC_ALL"] = "C.UTF-8"  # what the terminal says is compared in English
    os.environ[SWITCH] = "off"  # no run of a test starts a server
    for name, value in {"XLA_FLAGS": QUICK_TO_COMPILE, **environment.platforms()}.items():
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items):
    rank = {ROOT / "tests" / name: number for number, name in enumerate(BEGUN_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_OF_A_WORKER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file run in one worker and in their order: they share fixtures, and some read what others made."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # the order is that of `BEGUN_FIRST`
    return LoadFileScheduling(config, log)


# Seconds of processor time, those of its ended children included, that an unmarked test may take. A test that takes
# more wants a smaller case, or the mark `ci` or `slow`. The session fails over five times that: one test was seen to
# take 3.6 and 6.6 s, since busy cores are slower and who comes first compiles what others share.
BUDGET_SECONDS = 2.0
FAILS_SECONDS = 5 * BUDGET_SECONDS


def _processor_seconds() -> float:
    sharded = sys.modules.get("tests.eight_devices")  # its process goes on between tests
    return sum(os.times()[:4]) + (sharded.processor_seconds() if sharded else 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    began = _processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor_seconds", _processor_seconds() - began))


def _expensive(terminal) -> list[tuple[float, str]]:
    marked = {"ci", "slow"}
    reports = [report for report in terminal.stats.get("passed", []) if not marked & report.keywords.keys()]
    took = [(dict(report.user_properties).get("processor_seconds", 0.0), report.nodeid) for report in reports]
    return sorted((pair for pair in took if pair[0] > BUDGET_SECONDS), reverse=True)


def pytest_sessionfinish(session):
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal and any(seconds > FAILS_SECONDS for seconds, _ in _expensive(terminal)):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if expensive := _expensive(terminalreporter):
        over = f"over {BUDGET_SECONDS:g} s of processor time without a mark; over {FAILS_SECONDS:g} s is a failure"
        terminalreporter.section(over)
        for seconds, name in expensive:
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")


@pytest.fixture(autouse=True)
def _language_of_a_command_ends_with_it(monkeypatch):
    """A test may run a command in Japanese in its own process; the next one is in English again."""
    monkeypatch.setattr(language, "_chosen", "")


@pytest.fixture(scope="session", autouse=True)
def _measured_machine() -> Iterator[None]:
    """Pretraining in a test's own process does not measure this machine, which takes 2 s; commands beside it do."""
    with pytest.MonkeyPatch.context() as patch:
        if "jax" in sys.modules:  # a session without it imports none for this
            from tpullm.hardware import peak_flops
            from tpullm.planning import this_machine

            for module in (peak_flops, this_machine):
                patch.setattr(module, "fastest_run", lambda work: peak_flops.Fastest(0.005, disturbed=False))
        yield


@pytest.fixture(scope="session")
def real_text() -> Path:
    """The folder of real text for tests (`TPULLM_TEST_DATA`, or `../shared/data`); the test is skipped without it."""
    folder = Path(os.environ.get("TPULLM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real text in {folder}")
    return folder


def tpullm(*arguments: str | Path, check: bool = True, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tpullm", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Processes that are started in the block take SIGINT, also where a shell has the session ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for may be a zombie for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, once in a session: other workers wait for it."""
    made, session = Path(os.environ[SESSION]) / name, os.environ[SESSION]
    with open(f"{session}/{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            half = Path(tempfile.mkdtemp(dir=session)) / name
            make(half)
            half.rename(made)
    return made


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A finished run of `tests/tiny.yaml`, made by the real entry point once in a test session. Read only.

    A worker has a copy of its own: commands work in it, and a run directory is one command's at a time. Run once more,
    the copy knows its own place, and all else stays.
    """
    run = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(made_once("tiny", _make_tiny), run)
    _make_tiny(run)
    return run


def _make_tiny(run: Path) -> None:
    tpullm("run", "--config", TINY, "--run", run)


@pytest.fixture
def tiny_tokens(tiny_run, tmp_path) -> Path:
    return copy_tokens(tiny_run, tmp_path / "tiny")


def copy_tokens(run: Path, to: Path) -> Path:
    to.mkdir()
    shutil.copy(run / "recipe.yaml", to)
    for stage in ("documents", "tokenizer", "tokens"):
        shutil.copytree(run / stage, to / stage)
    return to


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
