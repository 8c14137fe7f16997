"""Worker processes do the work and outlive neither their block nor their parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, interruptible
from tpullm.system.process import workers


def is_gone(process: int) -> bool:
    """Whether the process has ended; one that nobody waits for may be a zombie for ever."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_results_come_from_other_processes():
    with workers.pool(2) as executor:
        assert list(executor.map(abs, range(-3, 3))) == [3, 2, 1, 0, 1, 2]
        assert executor.submit(os.getpid).result() != os.getpid()


def test_a_block_that_fails_ends_its_workers_at_once():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="^the block$"), workers.pool(1) as executor:
        child = executor.submit(os.getpid).result()
        executor.submit(time.sleep, 300)
        queued = [executor.submit(time.sleep, 300) for _ in range(5)]
        raise RuntimeError("the block")
    assert time.monotonic() - began < 200
    wait_for(lambda: is_gone(child))
    assert all(future.done() for future in queued)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
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
        wait_for(lambda: is_gone(child))
    finally:
        parent.kill()
        parent.communicate()
