"""Worker processes do each part once, and outlive neither their block nor their parent."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT, interruptible, is_gone, wait_until
from tpullm.system.process import workers
from tpullm.system.process.workers import run_all


def test_a_block_that_fails_ends_its_workers_at_once():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="^the block$"), workers.pool(1) as executor:
        child = executor.submit(os.getpid).result()
        executor.submit(time.sleep, 300)
        queued = [executor.submit(time.sleep, 300) for _ in range(5)]
        raise RuntimeError("the block")
    assert time.monotonic() - began < 200
    wait_until(lambda: is_gone(child))
    assert all(future.done() for future in queued)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("number, ignored", [(signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGINT, True)])
def test_workers_end_with_their_parent_and_silently_on_ctrl_c(number, ignored):
    """A parent that ignores Ctrl-C, as in a shell's background, has workers that do too."""
    program = (
        "import os, signal, time; from tpullm.system.process import workers\n"
        f"if {ignored}: signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with workers.pool(1) as executor:\n"
        "    print(executor.submit(os.getpid).result(), flush=True)\n"
        "    executor.submit(time.sleep, 300).result()\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with interruptible():
        parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
    try:
        child = int(parent.stdout.readline())
        if number == signal.SIGINT:
            os.kill(child, number)
            if ignored:
                time.sleep(0.5)
                assert not is_gone(child)
            else:
                assert "KeyboardInterrupt" not in parent.communicate(timeout=60)[1]
        parent.kill()
        wait_until(lambda: is_gone(child))
    finally:
        parent.kill()
        parent.communicate()


def note(path: Path) -> None:
    """The work of a part: leave the number of the process."""
    path.write_text(str(os.getpid()))


def fail_at_two(path: Path) -> None:
    if path.name == "2":
        raise ValueError("the second")
    note(path)


def run(folder, workers, size, work=note, count=4):
    parts, finished = [folder / str(number) for number in range(count)], []
    run_all(work, parts, [size] * count, workers, 400, lambda part: finished.append((part, parts[part].exists())))
    return [int(path.read_text()) for path in parts], finished


@pytest.mark.parametrize(("workers", "size"), [(1, 1000), (2, 100), (0, 100)])
def test_one_worker_or_little_to_do_is_done_here_in_order(tmp_path, workers, size):
    processes, finished = run(tmp_path, workers, size)
    assert set(processes) == {os.getpid()} and finished == [(part, True) for part in range(4)]


def test_more_is_done_by_other_processes(tmp_path):
    processes, finished = run(tmp_path, 2, 101)
    assert os.getpid() not in processes and sorted(finished) == [(part, True) for part in range(4)]


def test_there_are_as_many_workers_as_cores_and_no_more_than_parts(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(workers, "pool", lambda count: asked.append(count) or ThreadPoolExecutor(count))
    monkeypatch.setattr(workers, "cores", lambda: 3)
    for count, wanted in ((4, 0), (2, 0), (4, 2)):
        run(tmp_path, wanted, 1000, count=count)
    assert asked == [3, 2, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_part_is_raised(tmp_path, workers):
    with pytest.raises(ValueError, match="the second"):
        run(tmp_path, workers, 1000, fail_at_two)
