"""Facts of characters as tables, so that numpy finds those of a whole text at once.

A table ends where Unicode has no more letters, spaces and marks: look up code points with `mode="clip"`, and those
beyond have the last entry.
"""

import functools
from collections.abc import Callable

import numpy as np

END = 0x40000  # planes 4 to 13 are empty; behind them are tags, selectors of variants and private characters


def that(test: Callable[[str], bool]) -> np.ndarray:
    """Which characters pass a test: bool [END]."""
    return np.fromiter(map(test, map(chr, range(END))), bool, END)


def within(*blocks: tuple[int, int]) -> np.ndarray:
    """Which characters are in one of some blocks, each a first and a last code point: bool [END]."""
    found = np.zeros(END, bool)
    for first, last in blocks:
        found[first : last + 1] = True
    return found


def sizes(starts: np.ndarray, end: int) -> np.ndarray:
    """How far it is from each of some places in a text to the next one, and from the last one to `end`."""
    found = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=found[:-1])
    found[-1:] = end - starts[-1:]
    return found


@functools.cache
def of_words() -> np.ndarray:
    r"""Which characters `\w` matches, by the words of Python's documentation: bool [END]."""
    found = that(str.isalnum)
    found[ord("_")] = True
    return found
