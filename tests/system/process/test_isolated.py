"""What a model wrote can do little: limits hold, an end is an end of one call, and nothing of it stays behind."""

import errno
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import is_gone, wait_until
from tests.system.process import unhooked
from tests.system.process.hostile_work import parent_of
from tpullm.system.errors import UserError
from tpullm.system.process import confinement, isolated
from tpullm.system.process.isolated import Isolated

HERE = "tests.system.process.hostile_work"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and namespaces of Linux")


@pytest.fixture(scope="module")
def run():
    """A function that has one call made in isolation; its children are kept from call to call, as in a training."""
    made = {}

    def call(function, *arguments):
        if function not in made:
            made[function] = Isolated(function if ":" in function else f"{HERE}:{function}", 1, 256 << 20)
        value, call.late = made[function].map([list(arguments)])[0]
        return value

    call.made = made
    yield call
    for one in made.values():
        one.close()


def values(made, calls):
    return [found.value for found in made.map(calls)]


def is_root(run):
    """Whether a child stayed root: as this process sees it, since in its namespace every user is nobody."""
    run("echo")
    return os.stat(f"/proc/{run.made['echo']._children[0]._process.pid}").st_uid == 0


def may_become_nobody():
    become = f"import os; os.setgid({confinement.NOBODY}); os.setuid({confinement.NOBODY}); open(os.__file__)"
    return subprocess.run([sys.executable, "-c", become], capture_output=True).returncode == 0


def test_it_is_a_process_of_its_own_in_no_folder_of_the_users_without_secrets(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret")
    made = Isolated(f"{HERE}:tell", 1, 64 << 20)
    first, again = (values(made, [[]])[0] for _ in range(2))
    made.close()
    assert first["pid"] not in (again["pid"], os.getpid()) and first["folder"] == "/"
    assert not {"A_TOKEN", "HOME"} & first["environment"].keys()


def test_calls_keep_their_order_on_all_cores(monkeypatch):
    monkeypatch.setattr(isolated, "cores", lambda: 3)
    made = Isolated(f"{HERE}:echo", 1, 64 << 20)
    assert values(made, [[n, "猫\ud800"] for n in range(20)]) == [[n, "猫\ud800"] for n in range(20)]
    assert len(made._children) == 3 and made.map([]) == []
    asked = []  # equal calls are made once
    monkeypatch.setattr(made, "_call", lambda child, call: asked.append(call) or call)
    assert made.map([[1, "a"], [2, "a"], [1, "a"], [1, "b"]]) == [[1, "a"], [2, "a"], [1, "a"], [1, "b"]]
    assert sorted(asked) == [[1, "a"], [1, "b"], [2, "a"]]
    made.close()


@pytest.mark.parametrize("end", ["raise", "exit", "leave", "crash", "compute", "forge"])
def test_what_was_reported_before_the_end_counts(run, end):
    """What is no report is none."""
    assert run("count_then", end) in ({None, 2} if end == "forge" else {2})
    assert run.late == (end == "compute")
    assert run("echo", 1) == [1], "the next call is not disturbed"


@LINUX
def test_what_fills_its_memory_which_it_may_add_to_pythons_own_ends_by_that_and_is_not_late():
    made = Isolated(f"{HERE}:count_then", 20, 64 << 20)  # seconds: a machine that lends its memory fills it slowly
    assert made.map([["fill"], ["fill_slowly"], ["exit"]]) == [(2, False)] * 3
    made.close()
    made = Isolated(f"{HERE}:fill", 5, 64 << 20)
    assert values(made, [[48], [80], [48]]) == [48, None, 48]
    made.close()


def test_what_waits_for_ever_ends_by_the_clock(monkeypatch):
    monkeypatch.setattr(isolated, "CLOCK_FACTOR", 0.5)
    waits = Isolated(f"{HERE}:count_then", 1, 256 << 20)
    began = time.monotonic()
    waited, flooded = waits.map([["wait"], ["flood"]])
    assert waited == (2, True) and flooded.value in (None, 2, ["x" * 100_000])
    assert time.monotonic() - began < 60
    waits.close()


def test_what_a_function_needs_is_there(run):
    assert run("need", os.__file__) is True


@LINUX
@pytest.mark.parametrize("what", unhooked.CALLS)
def test_the_kernel_refuses_where_no_hook_sees_it(run, what):
    """Root too, who has no limit of processes."""
    assert run("tests.system.process.unhooked:call", what) == [-1, errno.EPERM]


@LINUX
@pytest.mark.parametrize("what", unhooked.FILES)
def test_the_kernel_refuses_changes_of_files_of_ones_own(run, tmp_path, what):
    path = tmp_path / "file"
    path.write_text("kept")
    tmp_path.chmod(0o777)
    path.chmod(0o666)
    assert run("tests.system.process.unhooked:call", what, str(path)) == [-1, errno.EPERM]
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_text() == "kept"


@LINUX
def test_it_reads_no_memory_of_what_waits_for_its_end(run):
    """The child that forks it, and so its neighbours, has the same user."""
    alone = "tests.system.process.unhooked:alone"
    run(alone, os.getpid())
    assert all(run(alone, pid) == "nothing" for pid in below(run.made[alone]._children[0]._process.pid))


def test_no_fork_has_seen_another_call(run):
    """The child reads no call, so there is nothing of another one to find."""
    assert run("keep", "a secret of one call") is True
    assert run("find", "a secret of another") == []


def test_the_hook_refuses_where_there_is_no_filter():
    refused = {"os.fork": (), "socket.connect": (None, None), "open": ("a", "w", os.O_WRONLY), "ctypes.dlopen": ("x",)}
    for event, arguments in refused.items():
        with pytest.raises(PermissionError, match=f"{event} is not permitted here"):
            confinement._refuse_audit_event(event, arguments)
    confinement._refuse_audit_event("open", ("file", "r", os.O_RDONLY))
    confinement._refuse_audit_event("os.listdir", (".",))


def test_a_machine_without_processes_left_or_a_child_that_cannot_start_is_one_line_and_no_score(monkeypatch):
    made = Isolated(f"{HERE}:echo", 1, 64 << 20)
    monkeypatch.setattr(isolated.Child, "ask", lambda *_: ["failed", "[Errno 11] Resource temporarily unavailable"])
    with pytest.raises(UserError, match="^no process can be started for what a model wrote .*Errno 11.*; free memory"):
        made.map([[1]])
    monkeypatch.undo()
    made._children = [isolated.Child(f"{HERE}:compute_nothing", first=[])]
    with pytest.raises(UserError, match=r"^the process for what a model wrote ends at its start \(exit code 1\); try"):
        made.map([[1]])


@LINUX
def test_nothing_is_left_behind_when_the_parent_is_killed():
    program = (
        "import os, threading; from tpullm.system.process.isolated import Isolated\n"
        f"one = Isolated('{HERE}:count_then', 100, 64 << 20)\n"
        "threading.Thread(target=one.map, args=([['wait']],), daemon=True).start()\n"
        "while not one._children or not one._children[0]._process: pass\n"
        "print(one._children[0]._process.pid, flush=True); import time; time.sleep(1000)"
    )
    with parent_of(program) as (_, child):
        wait_until(lambda: len(below(child)) >= 1)
        all_of_them = [child, *below(child)]
    for pid in all_of_them:
        wait_until(lambda pid=pid: is_gone(pid))


def below(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    return children + [one for child in children for one in below(child)]


@LINUX
@pytest.mark.skipif(os.getuid() != 0, reason="only root may look at them")
def test_it_has_all_its_namespaces_or_the_kernel_permits_none(run):
    run("echo")
    child = below(run.made["echo"]._children[0]._process.pid)
    spaces = [[os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("user", "pid", "net")] for pid in ("self", *child)]
    assert len({mine == its for mine, its in zip(spaces[0], spaces[-1], strict=True)}) == 1


@pytest.mark.parametrize(("machine", "column"), confinement._MACHINES.values())
def test_the_filter_permits_what_is_listed_to_its_own_machine_alone(machine, column):
    """Otherwise 32-bit calls of x86 would pass, whose numbers are others."""
    instructions = confinement._filter_instructions(machine, column)

    def is_permitted(number, of=machine, argument=0):
        words, word, at = {confinement._NUMBER_AT: number, confinement._MACHINE_AT: of}, 0, 0
        while True:
            code, if_true, if_false, value = instructions[at]
            if code == confinement._RETURN:
                return value == confinement._ALLOW
            if code == confinement._LOAD:
                word, skipped = words.get(value, argument), 0
            else:
                holds = word == value if code == confinement._IF_EQUAL else word & value
                skipped = if_true if holds else if_false
            at += 1 + skipped

    listed = {int(of.split()[1 + column]) for of in confinement._PERMITTED.split(",")} - {-1}
    guarded = {numbers[column] for numbers, _, _ in confinement._GUARDED.values()} - {-1}
    assert {number for number in range(1000) if is_permitted(number)} == listed | guarded
    assert not any(is_permitted(number, 0x40000003) for number in range(1000))
    assert not any(is_permitted(number, argument=os.O_CREAT | os.O_RDWR) for number in guarded)


@pytest.mark.skipif(isolated.NOT_ISOLATED in os.environ, reason="this system has no Landlock")
def test_packages_beside_the_library_are_not_the_library(tmp_path):
    for name in ("module.py", "folder/module.py", "site-packages/module.py", "dist-packages/module.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    program = (
        f"import os, sys, sysconfig; sys.path.insert(0, {os.getcwd()!r})\n"
        f"from tpullm.system.process import confinement\nsysconfig.get_path = lambda name: {str(tmp_path)!r}\n"
        "confinement._see_interpreter_alone(confinement.interpreter_rules())\n"
        "for name in ('', 'folder/', 'site-packages/', 'dist-packages/'):\n"
        f"    try: print(open({str(tmp_path)!r} + '/' + name + 'module.py').read())\n"
        "    except PermissionError: print('refused')"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.split() == ["module.py", "folder/module.py", "refused", "refused"], said.stderr


@LINUX
@pytest.mark.skipif(os.getuid() != 0, reason="a user's own files")
def test_root_becomes_nobody(run):
    assert is_root(run) == (not may_become_nobody())
    assert is_root(run) or run("tell")["groups"] == []
