"""A child reads what is foreign: its limits hold, its end is one line, and nothing of it stays behind."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT, is_gone, wait_until
from tests.system.process.hostile_work import parent_of
from tpullm.system.errors import UserError
from tpullm.system.process import limited
from tpullm.system.process.limited import Limited

HERE = "tests.system.process.hostile_work"
LIMITS = {"RLIMIT_AS": 1 << 30, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}


@pytest.fixture
def child():
    made = Limited()
    yield made
    made.close()


def test_a_call_gives_what_the_function_gives_in_another_process_that_stays(child, capfd):
    values = [1, "猫\ud800", None, {"a": [True, 2.5]}]
    assert child.call("x", "builtins:list", values) == values
    assert child.call("x", f"{HERE}:talk") == "said" and capfd.readouterr() == ("", ""), "what is printed goes nowhere"
    pids = {child.call("x", "os:getpid") for _ in range(3)}
    assert len(pids) == 1 and os.getpid() not in pids
    child.close()
    child.close()
    assert is_gone(pids.pop()) and child.call("x", "os:getpid") != os.getpid()


ENDS = [
    ((f"{HERE}:refuse",), "it is so"),
    (("operator:truediv", 1, 0), r"x: can't be read \(ZeroDivisionError: division by zero\)"),
    ((f"{HERE}:panic",), r"x: can't be read \(Panic: at the disco\)"),
    ((f"{HERE}:recurse",), "x: can't be read .RecursionError"),
    (("operator:mul", "a", 1 << 32), "x: reading it needs more than 1 GiB of memory; it is broken or hostile, do not"),
    (("os:abort",), r"x: reading it ends by signal 6 \(is 1 GiB of memory too little\?\)"),
    (("os:_exit", 7), "x: reading it ends with exit code 7"),
    (("operator:mul", "a", limited.MOST_REPLY_BYTES), r"x: can't be read \(it becomes 67,108,\d+ bytes\)"),
    ((f"{HERE}:forge_a_length",), "x: reading it makes more than 64 MiB of it"),
    ((f"{HERE}:forge_an_answer",), "x: reading it gives no answer"),
    (("shutil:copyfile", __file__, "/tmp/tpullm-never"), r"x: can't be read \(OSError: .*File too large"),
]


@pytest.mark.parametrize(("call", "told"), ENDS)
def test_every_end_is_one_line(child, call, told):
    with pytest.raises(UserError, match=f"^{told}") as end:
        child.call("x", *call)
    assert "\n" not in str(end.value) and len(str(end.value)) < 400
    assert child.call("x", "builtins:list", [1]) == [1], "the next call has a child again"


def test_it_has_the_limits(child):
    """That of the processor is of each call, so it may be raised for the next one."""
    limits = {name: child.call("x", "resource:getrlimit", getattr(resource, name))[0] for name in LIMITS}
    assert limits == LIMITS
    soft, hard = child.call("x", "resource:getrlimit", resource.RLIMIT_CPU)
    assert child.call("x", "time:process_time") <= soft - limited.CPU_SECONDS <= 3 and hard == resource.RLIM_INFINITY


def test_no_secret_of_the_environment_reaches_it(child, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    found = child.call("x", f"{HERE}:environment")
    assert "A_TOKEN" not in found and "GLIBC_TUNABLES" not in found and found["TZ"] == "Asia/Tokyo"


def test_what_computes_for_ever_ends_at_its_processor_time(child, monkeypatch):
    monkeypatch.setattr(limited, "CPU_SECONDS", 1)
    pid = child.call("x", "os:getpid")
    with pytest.raises(UserError, match="x: reading it takes more than 1 s of the processor; it is broken or hostile"):
        child.call("x", f"{HERE}:compute", 1e9)
    assert is_gone(pid)


@pytest.mark.parametrize("call", [("time:sleep", 1e6), (f"{HERE}:ignore_the_clock",)])
def test_what_waits_for_ever_ends_by_the_clock_or_else_by_the_parent(child, monkeypatch, call):
    monkeypatch.setattr(limited, "WALL_SECONDS", 0.5)
    monkeypatch.setattr(limited, "GRACE_SECONDS", 0.5 if "ignore" in call[0] else 60)
    with pytest.raises(UserError, match="x: reading it takes more than 0.5 s; it is broken or hostile"):
        child.call("x", *call)


def test_it_ends_when_its_owner_is_collected():
    owner = Limited()
    pid = owner.call("x", "os:getpid")
    del owner
    wait_until(lambda: is_gone(pid))


def test_threads_take_turns(child):
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda number: child.call("x", "builtins:abs", number), range(8))) == list(range(8))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("number, work", [(signal.SIGINT, "time:sleep"), (signal.SIGKILL, f"{HERE}:compute")])
def test_no_child_is_left_behind(number, work):
    program = (
        "from tpullm.system.process.limited import Limited; child = Limited()\n"
        "print(child.call('x', 'os:getpid'), flush=True)\n"
        f"child.call('x', '{work}', 1e6)"
    )
    with parent_of(program) as (parent, pid):
        time.sleep(0.3)  # into the second call; before it, the test holds as well
        parent.send_signal(number)
        parent.communicate(timeout=60)
        wait_until(lambda: is_gone(pid))


def test_it_starts_without_what_costs_time():
    code = (
        f"import sys; sys.path = {[str(ROOT), *filter(None, sys.path)]}; import tpullm.system.process.limited\n"
        "print(*{'jax', 'numpy', 'tokenizers', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
