"""No program passes tests but by what its functions return, and what it does otherwise ends with it."""

import contextlib
import errno
import os
from pathlib import Path
from unittest.mock import Mock

import numpy
import pytest

from tests.system.process.test_isolated import below
from tpullm.system.errors import UserError
from tpullm.system.process import isolated
from tpullm.training.rewards import code_tests
from tpullm.training.rewards.code_tests import CodeTests, Judge
from tpullm.training.rewards.scorer import Example

TESTS = ["assert add(1, 2) == 3", "assert add(2, 3) == 5"]
LOOK_AT_ALL = """
import gc, sys
frame = sys._getframe()
while frame:
    for value in list(frame.f_locals.values()):
        if isinstance(value, list):
            value[:] = ["pass"] * 2
        if callable(value) and getattr(value, "__name__", "") in ("<lambda>", "report"):
            value(["passed"] * 2)
    frame = frame.f_back
"""
# Each passed all tests, or could have, as long as they ran in the process of the program.
FORGERS = {
    "exits": "import sys; sys.exit(0)",
    "leaves": "import os; os._exit(0)",
    "leaves later": "import os\ndef add(a, b): os._exit(0)",
    "raises what ends": "def add(a, b): raise KeyboardInterrupt",
    "writes verdicts": (
        'import os\nfor number in range(64):\n    try: os.write(number, b\'["passed", "passed"]\\n\')\n'
        "    except OSError: pass\nos._exit(0)"
    ),
    "writes answers": (
        "import json, os\ndef add(a, b):\n    for number in range(3, 64):\n        try:\n"
        "            data = json.dumps(['passed', ['list', 'passed'], ['list']]).encode()\n"
        "            os.write(number, len(data).to_bytes(8, 'big') + data)\n        except OSError: pass"
    ),
    "is equal to all": (
        "class Equal(int):\n    __eq__ = __ge__ = __le__ = lambda self, other: True\n    __hash__ = int.__hash__\n"
        "def add(a, b): return Equal()"
    ),
    "is an object equal to all": "class Equal:\n    def __eq__(*_): return True\ndef add(a, b): return Equal()",
    "replaces exec": "import builtins\nbuiltins.exec = lambda *arguments: None\nbuiltins.AssertionError = ValueError",
    "looks at all": LOOK_AT_ALL,
    "looks at all later": f"def add(a, b):\n    {LOOK_AT_ALL.strip().replace(chr(10), chr(10) + '    ')}",
    "ends with words": "import atexit\natexit.register(print, 'passed')",
    "kills": "import os, signal\ndef add(a, b): os.kill(os.getppid(), signal.SIGKILL)",
    "has no function": "",
}


@pytest.fixture(scope="module")
def judge():
    made = Judge(1, 128 << 20)
    yield made
    made.close()


@pytest.fixture(scope="module")
def verdict(judge):
    return lambda program, test, *more: judge.verdicts([[program, [test], *more]])[0][-1]


def test_a_program_is_scored_by_what_it_returns():
    scorer = CodeTests()
    answers = ["def add(a, b): return a + b", "def add(a, b): return 3", *FORGERS.values()]
    found = scorer.score([Example(n, text, fields={"tests": TESTS}) for n, text in enumerate(answers)])
    scorer.close()
    assert found[:2] == [1.0, 0.5]
    assert dict(zip(FORGERS, found[2:], strict=True)) == dict.fromkeys(FORGERS, 0.0)


def test_a_program_ends_no_loop_of_the_tests_and_stands_for_no_module(judge):
    """`all(map(f, values))` holds if `f` raises StopIteration; an own `math` calls all numbers close."""
    loops = ["assert all(map(lambda n: f(n) == n, [1, 2]))", "for n in map(f, [1, 2]):\n    assert n == 1"]
    assert judge.verdicts([["def f(n): raise StopIteration", loops]]) == [["error", "error"]]
    before = 'import math\n"""\nfrom a text no import is taken\n"""\nfrom math import *\n'
    fields, scorer = {"before": before, "tests": ["assert math.isclose(f(), gcd(2, 4))"]}, CodeTests()
    forged = "def f(): return 0\nclass math:\n    isclose = lambda *_: True"
    found = scorer.score([Example(n, text, fields=fields) for n, text in enumerate([forged, "def f(): return 2.0"])])
    scorer.close()
    assert found == [0.0, 1.0]


HOSTILE = {
    "while True: pass": "time",
    "def f():\n    while True: print('x' * 10_000)": "time",
    "def f():\n    return [0] * 10 ** 9": "memory",
    # Zeros that are never touched: to touch 128 MiB a page at a time took a busy machine its whole second once.
    "def f():\n    kept = []\n    while True: kept.append(bytes(1 << 20))": "memory",
    "def f():\n    f()": "error",
    "def f():\n    import os\n    while True: os.fork()": "error",
    "def f():\n    import threading\n    while True: threading.Thread(target=f).start()": "error",
    "def f():\n    return 'x' * (17 << 20)": "error",
    "def f():\n    import socket\n    socket.create_connection(('127.0.0.1', 9))": "error",
    "def f():\n    open('FILE', 'w')": "error",
    "def f():\n    import os\n    os.mkdir('FILE')": "error",
    "def f():\n    import ctypes\n    1 / (ctypes.CDLL(None).fork() + 1)": "error",
    "return (": "error",
}


def test_a_hostile_program_ends_with_a_word_and_leaves_nothing(judge, verdict, tmp_path):
    tmp_path.chmod(0o777)
    path, begun = str(tmp_path / "file"), [below(child._process.pid) for child in judge.isolated._children]
    found = judge.verdicts([[text.replace("FILE", path), ["f()\nassert False"]] for text in HOSTILE])
    assert dict(zip(HOSTILE, [words[-1] for words in found], strict=True)) == HOSTILE
    assert list(tmp_path.iterdir()) == []
    waiting = [below(child._process.pid) for child in judge.isolated._children]
    assert waiting[: len(begun)] == begun and all(len(forks) <= 1 for forks in waiting)
    assert verdict("def f(): return 1", "assert f() == 1") == "passed"


def test_it_finds_no_test_and_no_secret(verdict):
    """It is given the arguments of calls alone, and no variables."""
    program = (
        "import gc, os\ndef f(a):\n"
        "    kept = [each for each in gc.get_objects() if isinstance(each, (list, dict, tuple))]\n"
        "    values = [v for each in kept for v in (each.values() if isinstance(each, dict) else each)]\n"
        "    texts = [v for v in values if isinstance(v, str) and 'quince' + chr(32) + 'plum' in v]\n"
        "    return [*texts, *os.environ.keys() & {'HOME', 'PATH', 'USER'}]"
    )
    assert verdict(program, "x = f(3)\nassert x == [], x\nassert 'quince plum'") == "passed"


def test_it_has_one_descriptor_which_leads_to_its_tests(verdict):
    """Neither that of verdicts, whose last line counts, nor that of calls, with the tests of others."""
    opened = "try: return os.fstat(n).st_mode >> 12\n    except OSError: return 0"
    program = f"import os\ndef kind(n):\n    {opened}\ndef f(): return [*filter(None, map(kind, range(3, 4096)))]"
    assert verdict(program, "assert f() == [12], f()") == "passed", "12 is a socket"


# What a program may read to find its tests, a secret, or what others wait for: each gives what it found.
LOOKS = {
    "walks folders": "[p for top in ('/', '/root', '/home', '/tmp', FOLDER) for p in os.listdir(top)]",
    "opens a file of its user's": "open(FOLDER + '/tests.jsonl').read()",
    "opens this module": "open(MODULE).read()",
    "opens a package": "open(PACKAGE).read()",
    "reads its own memory": "open('/proc/self/mem', 'rb').read(1)",
    "reads memory of others": "[open(f'/proc/{n}/mem', 'rb').read(1) for n in (1, os.getppid())]",
    "reads variables of others": "open(f'/proc/{os.getppid()}/environ').read()",
    "reads words of others": "open('/proc/1/cmdline').read()",
    "reads accounts": "open('/etc/passwd').read()",
    "follows a link": "open('/proc/self/cwd' + MODULE).read()",
    "opens a disk": "[open('/dev/' + name, 'rb').read(1) for name in ('vda', 'sda', 'mem', 'null')]",
    "reads by a library": "linecache.getlines(MODULE)",
    "opens tpullm": "open(__import__('tpullm').__file__).read()",
}


@pytest.mark.skipif(isolated.NOT_ISOLATED in os.environ, reason="this system has no Landlock")
@pytest.mark.parametrize("look", LOOKS)
def test_it_sees_nothing_but_the_interpreter(verdict, tmp_path, look):
    """Not even as the user who may read it all: none of this takes root or namespaces."""
    (tmp_path / "tests.jsonl").write_text("assert f() == 'quince'")
    names = {"FOLDER": str(tmp_path), "MODULE": code_tests.__file__, "PACKAGE": pytest.__file__}
    text = LOOKS[look]
    for name, value in names.items():
        text = text.replace(name, repr(value))
    program = (
        "import linecache, os\ndef f():\n"
        f"    try: return {text} or 'nothing'\n"
        "    except OSError as error: return type(error).__name__\n"
        "    except ImportError: return 'nothing'"
    )
    assert verdict(program, "assert f() in ('PermissionError', 'FileNotFoundError', 'nothing'), f()") == "passed"


def test_it_may_import_pythons_own_library(verdict):
    names = "bisect, collections, csv, ctypes, datetime, hashlib, itertools, json, math, sqlite3, string, zoneinfo"
    program = f"import {names}\ndef f(): return zoneinfo.ZoneInfo('UTC').key, hashlib.sha256(b'a').hexdigest()[:4]"
    assert verdict(program, "assert f() == ('UTC', 'ca97')") == "passed"


@pytest.mark.skipif(Path(numpy.__file__).is_relative_to(Path.home()), reason="`nobody` may not read it")
def test_it_may_import_numpy(verdict):
    program = "import numpy as np\ndef f(): return int(np.arange(5).sum())"
    assert verdict(program, "assert f() == 10") == "passed"


@pytest.mark.skipif(Path(numpy.__file__).is_relative_to(Path.home()), reason="`nobody` may not read it")
def test_an_array_of_the_program_is_read_value_by_value(verdict):
    """numpy would take an address that the program says, and read the memory of the tests there."""
    program = "import numpy as np\ndef f(): return np.arange(3.0)"
    test = "import numpy as np\nassert np.allclose(f(), [0, 1, 2]) and (f() == np.arange(3)).all() and f().ndim == 1"
    assert verdict(program, test) == "passed"


@pytest.mark.parametrize("allowed", ["", "1"])
def test_where_files_can_not_be_kept_from_it_it_runs_only_if_that_is_said(monkeypatch, allowed):
    monkeypatch.setenv(isolated.NOT_ISOLATED, allowed)
    monkeypatch.setattr(isolated, "interpreter_rules", Mock(side_effect=OSError(errno.ENOSYS, "no Landlock")))
    with (
        contextlib.nullcontext()
        if allowed
        else pytest.raises(UserError, match=f"no Landlock.*{isolated.NOT_ISOLATED}=1")
    ):
        with contextlib.closing(Judge(1, 256 << 20)) as judge:
            assert judge.verdicts([["def f(): return 1", ["assert f() == 1"]]]) == [["passed"]]


def test_its_memory_is_bounded_beyond_that_of_the_interpreter(verdict):
    """128 MiB more. /proc says what Python has; if a program could not read that, it would have a GiB more."""
    program = "def f(n):\n    try: return len(bytearray(n << 20)) >> 20\n    except MemoryError: return 'none'"
    assert verdict(program, "assert (f(64), f(400)) == (64, 'none'), (f(64), f(400))") == "passed"


CALLS = """
from collections import Counter, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
import datetime, math
Pair = namedtuple("Pair", "a b")
class Own(ValueError): pass
@dataclass
class Point:
    x: int
    y: int = 0
    def moved(self, by=1): return Point(self.x + by, self.y)
class Node:
    def __init__(self, value): self.value, self.next = value, None
def same(value): return value
def sort(values): values.sort()
def fill(mapping, key=0): mapping[key] = [key]
def count():
    n = 0
    while True:
        yield n
        n += 1
def apply(function, *values): return [function(value) for value in values]
def only(values, kind): return [value for value in values if isinstance(value, kind)]
def fails(kind): raise {"own": Own("x"), "key": KeyError("k"), "plain": Exception("p")}[kind]
def length(node): return 1 + length(node.next) if node else 0
def nested(depth): return [nested(depth - 1)] if depth else []
def big(): return 7 ** 5000
def leave(): __import__("os")._exit(0)
point = Point(1)
"""


@pytest.mark.parametrize(
    "test",
    [
        "for value in [None, True, -0.5, 'é\\ud800', b'x', (1, [2, {3: {4}}]), range(3), 1j, frozenset({1})]:\n"
        "    assert same(value) == value and type(same(value)) is type(value)",
        "assert same(float('inf')) == float('inf') and same(float('nan')) != same(float('nan'))",
        "import fractions, decimal, datetime\nfor value in [fractions.Fraction(1, 3), decimal.Decimal('1.10'), "
        "datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3), datetime.timedelta(1, 2, 3)]:\n"
        "    assert same(value) == value",
        "assert big() == 7 ** 5000 and same(-(1 << 64)) == -(1 << 64)",
        "assert Pair(1, 2) == (1, 2) and Counter('aab') == {'a': 2, 'b': 1}",
        "values = [3, 1, 2]\nassert sort(values) is None and values == [1, 2, 3]",
        "kept = {}\nfill(kept, key=2)\nfill(kept)\nassert kept == {2: [2], 0: [0]}",
        "numbers = count()\nassert [next(numbers), next(numbers)] == [0, 1]",
        "assert apply(lambda x: x * 2, 1, 2) == [2, 4] and apply(len, 'ab') == [2]",
        "assert only([1, 'a', 2.0], int) == [1]",
        "assert Point(1).moved(by=2).x == 3 and Point(1) == point and Point(2) != point and isinstance(point, Point)",
        "assert repr(point) == 'Point(x=1, y=0)' and {Point: 1}[Point] == 1 and not isinstance(3, Point)",
        "root = Node(1)\nroot.next = Node(2)\nassert length(root) == 2 and root.next.next is None",
        "try:\n    fails('own')\nexcept ValueError as error:\n    assert str(error) == 'x'\nelse:\n    assert False",
        "try:\n    fails('key')\nexcept KeyError:\n    pass",
        "try:\n    apply(lambda x: 1 / x, 0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False",
        "assert math.pi > 3 and abs(-1) == 1",
        "assert all(same(n) == n for n in range(200))",
    ],
)  # fmt: skip
def test_a_test_asks_as_if_the_program_were_here(verdict, test):
    assert verdict(CALLS, test) == "passed"


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("assert same(1) == 2", "failed"),
        ("assert same == 3", "failed"),
        ("assert missing(1)", "error"),
        ("assert 3 in count()", "error"),
        ("assert point - 1 == 0", "error"),
        ("assert point < 1", "error"),
        ("fails('plain')", "error"),
        ("same(open)", "error"),
        ("nested(3000)", "error"),
        ("try:\n    leave()\nexcept:\n    pass", "error"),
        ("raise SystemExit", "error"),
    ],
)
def test_a_test_that_does_not_hold(verdict, test, expected):
    assert verdict(CALLS, test) in (expected, "passed" if test == "same(open)" else expected)


def test_names_of_python_are_pythons(verdict):
    """A program that defines such a name has the tests fail that use it, unless it is asked to."""
    program = "def all(values): return True\nlen = lambda values: 3\ndef f(): return []"
    assert verdict(program, "assert f() == []") == "passed"
    assert verdict(program, "assert all([])") == verdict(program, "assert len(f()) == 3") == "error"
    assert verdict("def sum(a, b): return a + b", "assert sum(1, 2) == 3", "", "sum") == "passed"


def test_what_was_given_is_not_the_programs(verdict):
    given = "def half(x):\n    return x / 2\n\ndef double(x):\n"
    for rest, ends in (("    return 0\n\ndef half(x): return 3", "failed"), ("    return 2 * x", "passed")):
        assert verdict(given + rest, "assert half(double(3)) == 3", given, "double") == ends


def test_an_error_of_a_file_is_an_error_of_one_test(judge):
    text = "def f():\n    open('/nowhere')\ndef g():\n    return 1"
    tests = ["f()", "assert g() == 1", "try:\n    f()\nexcept FileNotFoundError:\n    pass\nelse:\n    assert False"]
    assert judge.verdicts([[text, tests]]) == [["error", "passed", "passed"]]


def test_many_tests_are_all_counted_and_what_passed_before_the_time_was_over(judge):
    many, late = [f"assert f({n}) == {n}" for n in range(1500)], ["assert f(1) == 1", "while True: pass"]
    found = judge.verdicts([["def f(x): return x", tests] for tests in (many, [*late, late[0]])])
    assert found[0] == ["passed"] * 1500 and found[1].count("passed") == 1


def test_arguments_are_changed_in_place_by_name_too(verdict):
    text = "def f(items, last):\n    items.sort()\n    last.append(3)"
    test = "from collections import deque\nxs, ys = [2, 1], deque([1])\nf(items=xs, last=ys)"
    assert verdict(text, f"{test}\nassert xs == [1, 2] and ys == deque([1, 3])") == "passed"
