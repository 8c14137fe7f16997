"""Rewards of a user's own, good and bad, for `test_own_function`."""

import os
import sys
import time


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


def arrays(answers, prompts, fields):
    import numpy as np

    return np.arange(len(answers), dtype=np.float32)


def mixed(answers, prompts, fields):
    import numpy as np

    return (value for value in [True, 2, np.float64(0.5), np.int32(3)][: len(answers)])


def at_bad(answers, does):
    if "bad" in answers:
        does()
    return [0.0] * len(answers)


def hangs(answers, prompts, fields):
    return at_bad(answers, lambda: time.sleep(1000))


def slow(answers, prompts, fields):
    time.sleep(0.15 * len(answers))
    return [0.0] * len(answers)


def raises(answers, prompts, fields):
    return at_bad(answers, lambda: 1 / 0)


def leaves(answers, prompts, fields):
    return at_bad(answers, lambda: os._exit(7))


def exits(answers, prompts, fields):
    return at_bad(answers, lambda: sys.exit("over"))


def together(answers, prompts, fields):
    if len(answers) > 1:
        raise ValueError("too\nmany")
    return [0.0]


def fewer(answers, prompts, fields):
    return [0.0] * (len(answers) - ("bad" in answers))


def nan(answers, prompts, fields):
    return [float("nan") if answer == "bad" else 0.0 for answer in answers]


def infinite(answers, prompts, fields):
    return [float("-inf") if answer == "bad" else 0.0 for answer in answers]


def texts(answers, prompts, fields):
    return ["1.0" if answer == "bad" else 1.0 for answer in answers]


def nothing(answers, prompts, fields):
    return None


def one(answers, prompts, fields):
    return 1.0


no_function = 3
