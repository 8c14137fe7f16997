import numpy as np
import pytest

from tpullm.evaluation.statistics import ALIKE, BETTER, WORSE, agreement, figure, wilson

FIRST = np.repeat([1, 0], [20, 20]).astype(float)


def changed(gained: int, lost: int) -> np.ndarray:
    """The scores of a model that answers so many more questions right, and others wrong."""
    found = FIRST.copy()
    found[20 : 20 + gained], found[:lost] = 1, 0
    return found


def test_equal_scores_differ_by_exactly_0():
    found = figure([FIRST, FIRST, FIRST])
    assert found["deltas"] == [{"value": 0.0, "interval": [0.0, 0.0], "differ": 0, "word": ALIKE}] * 2
    assert found["scores"] == [{"value": 0.5, "interval": list(wilson(20, 40))}] * 3 and found["count"] == 40


@pytest.mark.parametrize(("gained", "lost", "word"), [(10, 2, BETTER), (2, 10, WORSE), (3, 2, ALIKE), (12, 11, ALIKE)])
def test_a_planted_difference(gained, lost, word):
    (delta,) = figure([FIRST, changed(gained, lost)])["deltas"]
    assert delta["value"] == pytest.approx((gained - lost) / 40) and delta["differ"] == gained + lost
    low, high = delta["interval"]
    assert low < delta["value"] < high and delta["word"] == word


def test_where_lower_is_better_the_words_are_exchanged():
    (delta,) = figure([FIRST, changed(10, 2)], higher_is_better=False)["deltas"]
    assert delta["value"] == pytest.approx(0.2) and delta["word"] == WORSE


@pytest.mark.parametrize(("differing", "word"), [(5, ALIKE), (6, BETTER)])
def test_a_few_that_differ_say_nothing(differing, word):
    """All one way, and the interval is far from 0 in both cases."""
    (delta,) = figure([np.zeros(differing), np.ones(differing)])["deltas"]
    assert delta["interval"] == [1.0, 1.0] and delta["word"] == word


def test_sums_over_documents_are_divided_by_the_sum_of_their_sizes():
    sizes, bits = np.array([10, 1000] * 5), np.array([20.0, 1000.0] * 5)
    found = figure([bits, bits + 0.1 * sizes], higher_is_better=False, sizes=sizes)
    assert found["scores"][0]["value"] == pytest.approx(1020 / 1010)
    low, high = found["scores"][0]["interval"]
    assert 1000 / 1000 < low < 1020 / 1010 < high < 2
    (delta,) = found["deltas"]
    assert [delta["value"], *delta["interval"]] == pytest.approx([0.1] * 3) and delta["word"] == WORSE


def test_who_is_right_where():
    right, first = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]], bool)
    assert agreement(right, first) == {"both": 1, "only_first": 1, "only_other": 2, "neither": 2}
