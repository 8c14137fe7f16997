"""Rewards of a user's own, good and bad, for `test_own_function`."""

import os
import sys
import time

import numpy as np

MIXED = [True, 2, np.float64(0.5), np.int32(3)]


def length(answers, prompts, fields, scale=1.0):
    return [len(answer) * scale for answer in answers]


def see(answers, prompts, fields):
    assert prompts == [[{"role": "user", "content": "a"}]] * len(answers)
    print("printed", file=sys.stdout)
    return [field["wanted"] for field in fields]


def process(answers, prompts, fields):
    return [os.getpid()] * len(answers)


def whole(answers, prompts, fields):
    return [float(len(answers))] * len(answers)


RETURNS = {
    "arrays": lambda answers: np.arange(len(answers), dtype=np.float32),
    "mixed": lambda answers: iter(MIXED[: len(answers)]),
    "together": lambda answers: [1 / (len(answers) == 1)],
    "fewer": lambda answers: [0.0] * (len(answers) - ("bad" in answers)),
    "nan": lambda answers: [float("nan") if answer == "bad" else 0.0 for answer in answers],
    "infinite": lambda answers: [float("-inf") if answer == "bad" else 0.0 for answer in answers],
    "texts": lambda answers: ["1.0" if answer == "bad" else 1.0 for answer in answers],
    "nothing": lambda answers: None,
    "one": lambda answers: 1.0,
    "slow": lambda answers: time.sleep(0.15 * len(answers)) or [0.0] * len(answers),
}


def returns(answers, prompts, fields, what):
    return RETURNS[what](answers)


AT_BAD = {
    "hangs": lambda: time.sleep(1000),
    "raises": lambda: int("so\nmany"),
    "leaves": lambda: os._exit(7),
    "exits": lambda: sys.exit("over"),
}


def at_bad(answers, prompts, fields, what):
    if "bad" in answers:
        AT_BAD[what]()
    return [0.0] * len(answers)


no_function = 3
