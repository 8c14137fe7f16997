"""The infinite order of the rows of all sources: mixed by their shares, and shuffled anew in each epoch.

The row at a place is computed from the place alone, for many places at once. The order is that of grain's
`MapDataset.range(rows).shuffle(seed).repeat()`, mixed by `MapDataset.mix`. grain takes 14 microseconds a row, this 5.
From some place on the shares may be others. Every source then goes on in its own order where it was.
"""

from collections.abc import Sequence

import numpy as np

FINEST = 10**9  # the most that proportions add up to, about: with places below 9e9, their products fit 63 bits


class Order:
    """Which row of which source is read at each place 0, 1, 2, ..."""

    def __init__(
        self,
        rows: Sequence[int],
        shares: Sequence[float],
        seeds: Sequence[int],
        later: Sequence[tuple[int, Sequence[float]]] = (),
    ):
        """Take of each source its number of rows, its share of the rows that are read, and a seed of 32 bits.

        Args:
            later: other shares, each with the place from which they count; places ascend. A share of 0 is not read.
        """
        from grain.experimental import index_shuffle

        self._shuffled = index_shuffle
        self._rows, self._seeds = np.array(rows), np.array(seeds)
        self._firsts = np.array([0, *(first for first, _ in later)])
        self._proportions = [_proportions(each) for each in (shares, *(each for _, each in later))]
        self._before = [[0] * len(rows)]  # rows of each source that are read before each phase
        for phase, first in enumerate(self._firsts[1:].tolist()):
            self._before.append(self._counted(phase, first))

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row (in the source) at each of `places`; int64 `[places]` each."""
        sources, numbers = self._mixed(places)
        counts = self._rows[sources]
        epochs, within = np.divmod(numbers, counts)
        seeds = (self._seeds[sources] + epochs) % 2**32
        wanted = zip(within.tolist(), (counts - 1).tolist(), seeds.tolist(), strict=True)
        rows = [self._shuffled(place, last, seed, 4) for place, last, seed in wanted]
        return sources, epochs, np.array(rows, np.int64)

    def read_before(self, place: int) -> list[int]:
        """How many rows of each source are read before `place`."""
        return self._counted(int(np.searchsorted(self._firsts, place, side="right")) - 1, place)

    def _counted(self, phase: int, place: int) -> list[int]:
        """`read_before` of a place in a phase, or at its end."""
        here = _counts(place - int(self._firsts[phase]), self._proportions[phase])
        return [before + count for before, count in zip(self._before[phase], here, strict=True)]

    def _mixed(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source at each place, and how many rows of that source come before the place."""
        phases = np.searchsorted(self._firsts, places, side="right") - 1
        sources, numbers = np.zeros((2, len(places)), np.int64)
        for phase in np.unique(phases).tolist():
            here = phases == phase
            sources[here], within = _mixed(places[here] - self._firsts[phase], self._proportions[phase])
            numbers[here] = within + np.array(self._before[phase])[sources[here]]
        return sources, numbers


def _proportions(shares: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the shares, exact to 1 % of the smallest one above 0."""
    finest = min(100 / min(share for share in shares if share > 0), FINEST)
    return [max(int(share * finest), int(share > 0)) for share in shares]


def _mixed(places: np.ndarray, proportions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The source at each place, and how many rows of that source come before the place.

    Of the first n rows the first source has its share, rounded up. The other sources are mixed into the other rows in
    the same way.
    """
    sources, numbers, total = np.full(len(places), -1), places, sum(proportions)
    for source, proportion in enumerate(proportions):
        if not proportion:
            continue
        undecided = sources < 0
        others, others_after = (count * (total - proportion) // total for count in (numbers, numbers + 1))
        here = undecided & (others == others_after)
        sources[here] = source
        numbers = np.where(here, numbers - others, np.where(undecided, others, numbers))
        total -= proportion
    return sources, numbers


def _counts(places: int, proportions: Sequence[int]) -> list[int]:
    """How many of the first `places` places each source has."""
    counts, total = [], sum(proportions)
    for proportion in proportions:
        others = places * (total - proportion) // total if proportion else places
        counts.append(places - others)
        places, total = others, total - proportion
    return counts
