"""A child process: its lines, its exit code, and its end."""

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT, is_gone, wait_until
from tpullm.launch import child_process
from tpullm.launch.child_process import Child


def ended(program: str, environment=os.environ) -> tuple[Child, int, list[str]]:
    lines = []
    child = Child([sys.executable, "-c", program], environment, lines.append)
    wait_until(lambda: child.poll() is not None)
    return child, child.poll(), lines


def test_all_lines_of_both_streams_are_there_and_the_variables_and_no_input():
    program = "import sys; [print(n) for n in range(2000)]; sys.stdout.flush(); print('error', file=sys.stderr)"
    child, code, lines = ended(program)
    assert code == 0 and lines == [*map(str, range(2000)), "error"] and child.last_line == "error"
    assert child.poll() == 0, "however often it is asked"
    program = "import os, sys; print(sorted(set(os.environ) - {'LC_CTYPE'}), repr(sys.stdin.read()))"
    assert ended(program, {"A": "1"})[2] == ["['A'] ''"]


def test_a_signal_is_a_code_as_in_a_shell():
    codes = [ended(f"import os; os.kill(os.getpid(), {number})")[1] for number in (9, 15)]
    assert codes == [137, 143] and ended("raise SystemExit(7)")[1] == 7


def test_it_can_be_told_to_stop():
    started = []
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(130)); print('up', flush=True)"
    child = Child([sys.executable, "-c", f"{program}; time.sleep(60)"], os.environ, started.append)
    wait_until(lambda: started)
    child.send(signal.SIGTERM)
    wait_until(lambda: child.poll() == 130)
    child.send(signal.SIGTERM)
    child.kill()


def test_what_it_started_ends_when_it_is_killed(monkeypatch):
    """A pipe that such a process holds open does not keep its end from being seen."""
    monkeypatch.setattr(child_process, "SECONDS_TO_READ", 0.5)
    program = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    child, code, lines = ended(program)
    assert code == 0 and not is_gone(int(lines[0]))
    child.kill()
    wait_until(lambda: is_gone(int(lines[0])))


def test_a_pipe_that_stays_open_does_not_keep_this_process_from_its_end():
    """The child has ended, and a process in a session of its own still holds the child's stdout."""
    holder = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
    program = (
        "import os, sys, time; from tpullm.launch.child_process import Child; lines = []\n"
        f"child = Child([sys.executable, '-c', {holder!r}], os.environ, lines.append)\n"
        "while not lines: time.sleep(0.01)\n"
        "print(lines[0], flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0, done.stderr
