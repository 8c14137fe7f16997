import grain
import numpy as np
import pytest

from tpullm.data.mixture import Order

SOURCES = {
    "one": ([97], [1.0], [3]),
    "a single row": ([1], [1.0], [0]),
    "two": ([200, 310], [0.75, 0.25], [1, 2**32 - 1]),
    "many, of very different shares": ([150, 1000, 640, 170], [0.001, 0.7, 0.2, 0.099], [11, 12, 13, 14]),
}


def grains_order(rows, shares, seeds):
    """Source, epoch and row at each place by grain's own datasets."""
    datasets = []
    for source, (count, seed) in enumerate(zip(rows, seeds, strict=True)):
        shuffled = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
        datasets.append(shuffled.map_with_index(lambda i, row, source=source, n=count: (source, i // n, row)))
    return grain.MapDataset.mix(datasets, shares)


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_the_order_is_that_of_grain(sources):
    expected = grains_order(*sources)
    places = np.concatenate([np.arange(300), [123_456_789, 5, 10_000_000_000]])
    found = np.stack(Order(*sources).at(places), axis=1)
    assert found.tolist() == [list(expected[place]) for place in places.tolist()]
