"""What tests stand for: programs that a model wrote (`test_isolated`), and readers that what they read took over."""

import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tpullm.system.errors import UserError


@contextlib.contextmanager
def parent_of(program):
    """A process that runs a program, and the number of its child, which it prints first."""
    from tests.conftest import ROOT, interruptible

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with interruptible():
        parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
    try:
        yield parent, int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.communicate()


def echo(report, *values):
    report(list(values))


def tell(report):
    names = {"pid": os.getpid, "parent": os.getppid, "groups": os.getgroups, "folder": os.getcwd}
    report({name: told() for name, told in names.items()} | {"environment": dict(os.environ)})


def keep(report, secret):
    report(len(secret) > 0)


def find(report, other):
    """Report the texts about a secret that are in this process, but for the one of this call."""
    texts = [value for kept in gc.get_objects() if isinstance(kept, list) for value in kept if isinstance(value, str)]
    found = {text for text in texts if text.startswith("a secret of")} - {other}
    memory = b""
    with contextlib.suppress(OSError), open("/proc/self/mem", "rb") as file:
        memory = file.read(1)
    report([*found, *([memory.hex()] if memory else [])])


def fill(report, mebibytes):
    report(len(bytearray(mebibytes << 20)) >> 20)


def count_then(report, end):
    report(1)
    report(2)
    {
        "raise": lambda: 1 / 0,
        "exit": lambda: sys.exit(0),
        "leave": lambda: os._exit(0),
        "crash": lambda: os.abort(),
        "compute": compute,
        "wait": lambda: time.sleep(1000),
        "fill": lambda: bytearray(1 << 34),
        "fill_slowly": fill_slowly,
        "flood": lambda: flood(report),
        "forge": forge,
    }[end]()


def compute(seconds=math.inf):
    while time.process_time() < seconds:
        pass


def fill_slowly():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def flood(report):
    while True:
        report(["x" * 100_000])


def forge():
    os.write(3, b"not JSON\n")
    for descriptor in range(3, 50):
        try:
            os.write(descriptor, b"[" * 5000 + b"\n")
        except OSError:
            continue


def need(report, path):
    """Read a file and its folder, and import a module."""
    read, listed = Path(path).read_text("utf-8"), os.listdir(Path(path).parent)
    report(bool(read and listed and __import__("fractions").Fraction(1, 2)))


class Panic(BaseException):
    """As of a library in another language."""


def refuse():
    raise UserError("it\nis so")


def panic():
    raise Panic("at the disco")


def recurse():
    return recurse()


def _forge(data):
    for descriptor in range(3, 20):  # one of them is the pipe to the parent
        try:
            os.write(descriptor, data)
        except OSError:
            continue
    time.sleep(1000)


def forge_a_length():
    _forge(b"\xff" * 8)


def forge_an_answer():
    _forge((9).to_bytes(8, "big") + b"[[[[[[[[[")


def talk():
    print("out")
    print("err", file=sys.stderr)
    os.write(1, b"out")
    return "said"


def environment():
    return dict(os.environ)


def ignore_the_clock():
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(1000)
