"""Progress of the benchmark: a line on stderr for every round, with the remaining time."""

import time
from collections.abc import Mapping

from tpullm.system.log import say


class Clock:
    """Estimates the remaining time from the expected times of the parts, corrected by the times they took.

    Args:
        expected: seconds of each part, in order, as measured on two cores.
    """

    def __init__(self, expected: Mapping[str, float]):
        self._expected = dict(expected)
        self._start = time.monotonic()
        self._done = 0.0

    def tell(self, part: str, share: float, message: str) -> None:
        """Print `message` when `share` of `part` is done (1 is all of it)."""
        elapsed = time.monotonic() - self._start
        before = sum(list(self._expected.values())[: list(self._expected).index(part)])
        self._done = max(self._done, before + share * self._expected[part])
        pace = elapsed / self._done if self._done else 1.0
        left = pace * (sum(self._expected.values()) - self._done)
        say(f"[{minutes(elapsed)}, {minutes(left)} left] {part}: {message}")


def minutes(seconds: float) -> str:
    """`75` as `1:15`."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"
