"""Worker processes outlive neither their block nor their parent."""

import os
import signal
import sys
import time

import pytest

from tests.conftest import is_gone, wait_until
from tests.system.process.hostile_work import parent_of
from tpullm.system.process import workers


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
    with parent_of(program) as (parent, child):
        if number == signal.SIGINT:
            os.kill(child, number)
            if ignored:
                time.sleep(0.5)
                assert not is_gone(child)
            else:
                assert "KeyboardInterrupt" not in parent.communicate(timeout=60)[1]
        parent.kill()
        wait_until(lambda: is_gone(child))
