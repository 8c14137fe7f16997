"""What the functions of `test_limited` stand for: readers that what they read has taken over."""

import os
import signal
import sys
import time

from tpullm.system.errors import UserError
from tpullm.system.process import limited


class Panic(BaseException):
    """As of a library in another language."""


def echo(*values):
    return list(values)


def refuse():
    raise UserError("it\nis so")


def fail():
    return 1 / 0


def panic():
    raise Panic("at the disco")


def recurse():
    return recurse()


def fill():
    return len("a" * 3_000_000_000)


def crash():
    os.kill(os.getpid(), 11)


def leave():
    os._exit(7)


def answer_without_end():
    return "a" * limited.MOST_REPLY_BYTES


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


def write():
    with open("/tmp/tpullm-never", "wb") as file:
        file.write(b"x")


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


def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
