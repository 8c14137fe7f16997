"""What the functions of `test_isolated` stand for: programs that a model wrote."""

import contextlib
import gc
import os
import sys
import time
from pathlib import Path


def echo(report, *values):
    report(list(values))


def tell(report):
    """Where it is."""
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
    """Report how much memory there is."""
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


def compute():
    while True:
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


def attempt(report, what, *given):
    """Report what an attempt gives, or the kind of its error."""
    try:
        report(f"done: {ATTEMPTS[what](*given)}")
    except BaseException as error:
        report(type(error).__name__)


ATTEMPTS = {
    "read": lambda path: len(Path(path).read_text("utf-8")) > 0,
    "list": lambda path: len(os.listdir(path)) > 0,
    "import": lambda: __import__("fractions").Fraction(1, 2),
}
